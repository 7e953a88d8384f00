"""Sets of TFDS: decoding against the pictures that went in, the checksummed copy, and every way a set can be broken."""

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from nctheory import DatasetError, vision
from nctheory.vision import _tfds

SIZES = {"train": 12, "test": 6}


def picture(split, i):
    """A random picture that its split and number name."""
    return np.random.default_rng([SIZES[split], i]).integers(0, 256, (4, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder with a set that TFDS wrote: 18 pictures of three classes, called cifar10."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            label = tfds.features.ClassLabel(names=["ant", "bee", "cat"])
            image = tfds.features.Image(shape=(4, 5, 3), dtype=np.uint8)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            for i in range(SIZES[split]):
                file = io.BytesIO()
                Image.fromarray(picture(split, i)).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i % 3}

    folder = tmp_path_factory.mktemp("sets")
    Cifar10(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def own_copy(prepared, tmp_path, monkeypatch):
    """A copy of the set that a test may damage, with a cache of its own."""
    monkeypatch.setenv("NCTHEORY_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copytree(prepared, tmp_path / "sets"))


def same_pictures(data, split):
    expected = {picture(split, i).tobytes(): i % 3 for i in range(SIZES[split])}
    return {
        image.tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)
    } == expected  # the writer shuffles


@pytest.mark.parametrize("split", vision.SPLITS)
def test_pictures_and_labels_come_back(own_copy, split):
    first = vision.load("cifar10", split, own_copy, progress=False)
    again = vision.load("cifar10", split, own_copy, progress=False)
    assert first.images.shape == (SIZES[split], 4, 5, 3)
    assert first.images.dtype == np.uint8
    assert first.labels.dtype == np.int32
    assert first.class_names == ("ant", "bee", "cat")
    assert same_pictures(first, split)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert "tensorflow" not in sys.modules


def test_the_second_time_nothing_is_decoded(own_copy, monkeypatch):
    vision.load("cifar10", "test", own_copy, progress=False)
    monkeypatch.setattr(_tfds, "_decode", lambda *_: pytest.fail("decoded again"))
    assert same_pictures(vision.load("cifar10", "test", own_copy, progress=False), "test")


def test_the_environment_names_the_folder(own_copy, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(own_copy))
    assert vision.load("cifar10", "test", progress=False).num_samples == 6


def only_cache():
    (folder,) = (_tfds.cache_folder() / "datasets").iterdir()
    return folder


@pytest.mark.parametrize("damage", ["flip a byte", "truncate", "other labels", "no record", "half a record"])
def test_a_damaged_copy_is_made_again_with_a_warning(own_copy, damage):
    vision.load("cifar10", "test", own_copy, progress=False)
    images, record = only_cache() / "images.npy", only_cache() / "record.json"
    if damage == "flip a byte":
        raw = bytearray(images.read_bytes())
        raw[-7] ^= 1
        images.write_bytes(raw)
    elif damage == "truncate":
        images.write_bytes(images.read_bytes()[:-50])
    elif damage == "other labels":
        np.save(only_cache() / "labels.npy", np.zeros(6, np.int32))
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:20])
    with pytest.warns(UserWarning, match=r"cifar10-test-.* is damaged .* made again"):
        mended = vision.load("cifar10", "test", own_copy, progress=False)
    assert same_pictures(mended, "test")
    assert same_pictures(vision.load("cifar10", "test", own_copy, progress=False), "test")


@pytest.mark.parametrize("other", ["whole", "damaged"])
def test_a_copy_that_another_process_made_meanwhile_stays_if_it_is_whole(own_copy, monkeypatch, other):
    usual = _tfds._decode

    def late(*arguments):
        found = usual(*arguments)
        _tfds._to_cache(_tfds.cache_folder() / "datasets" / name, found)
        if other == "damaged":
            (only_cache() / "images.npy").write_bytes(b"")
        (only_cache() / "mark").write_text("")
        return found

    vision.load("cifar10", "test", own_copy, progress=False)
    name = only_cache().name
    shutil.rmtree(only_cache())
    monkeypatch.setattr(_tfds, "_decode", late)
    assert same_pictures(vision.load("cifar10", "test", own_copy, progress=False), "test")
    assert (only_cache() / "mark").exists() == (other == "whole")
    monkeypatch.setattr(_tfds, "_decode", lambda *_: pytest.fail("decoded again"))
    assert same_pictures(vision.load("cifar10", "test", own_copy, progress=False), "test")


def test_pickles_in_the_copy_are_not_opened(own_copy):
    vision.load("cifar10", "test", own_copy, progress=False)
    np.save(only_cache() / "labels.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.warns(UserWarning, match="damaged"):
        assert same_pictures(vision.load("cifar10", "test", own_copy, progress=False), "test")


def test_new_files_get_a_new_copy(own_copy):
    vision.load("cifar10", "test", own_copy, progress=False)
    shard = next(own_copy.glob("cifar10/3.0.2/*-test.*"))
    os.utime(shard, (1, 1))
    vision.load("cifar10", "test", own_copy, progress=False)
    assert len(list((_tfds.cache_folder() / "datasets").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(own_copy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NCTHEORY_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be written"):
        assert same_pictures(vision.load("cifar10", "test", own_copy, progress=False), "test")


@pytest.mark.parametrize("keep", [0, 40, -30])
def test_a_truncated_set_is_an_error_that_names_it(own_copy, keep):
    shard = next(own_copy.glob("cifar10/3.0.2/*-test.*"))
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"Data set 'cifar10' at .*3\.0\.2 cannot be read"):
        vision.load("cifar10", "test", own_copy, progress=False)
    assert not (_tfds.cache_folder() / "datasets").exists()


def test_a_damaged_row_is_an_error(own_copy):
    shard = next(own_copy.glob("cifar10/3.0.2/*-test.*"))
    raw = bytearray(shard.read_bytes())
    start = raw.find(b"IDAT")
    raw[start : start + 30] = bytes(30)
    shard.write_bytes(raw)
    with pytest.raises(DatasetError, match="cannot be read"):
        vision.load("cifar10", "test", own_copy, progress=False)


def test_an_absent_set_says_where_it_was_looked_for_and_what_to_do(tmp_path, monkeypatch):
    class Builder:
        def download_and_prepare(self):
            raise ConnectionError("no network\nhere")

    class Library:
        @staticmethod
        def builder(*_, **__):
            return Builder()

    monkeypatch.setattr(_tfds, "_library", lambda: Library)
    with pytest.raises(
        DatasetError, match=r"'mnist' is not under .*/absent .*ConnectionError: no network here.*--file"
    ):
        vision.load("mnist", "train", tmp_path / "absent")


def real(name):
    """Skip unless a copy of the set is at hand."""
    folder = _tfds.data_folder(None)
    if not list(folder.glob(f"{name}/*/dataset_info.json")):
        pytest.skip(f"{name} is not under {folder}; TFDS_DATA_DIR names another folder")


@pytest.mark.parametrize(
    ("name", "count", "shape", "first"),
    [
        ("mnist", 10_000, (28, 28, 1), "0"),
        pytest.param("cifar10", 10_000, (32, 32, 3), "airplane", marks=pytest.mark.slow),
    ],
)
def test_the_real_sets_have_their_published_sizes(name, count, shape, first, tmp_path, monkeypatch):
    real(name)
    monkeypatch.setenv("NCTHEORY_CACHE_DIR", str(tmp_path))
    data = vision.load(name, "test", progress=False)
    assert data.images.shape == (count, *shape)
    assert data.class_names[0] == first
    assert data.num_classes == 10
    sizes = np.bincount(data.labels)
    # Published: CIFAR-10 has 1,000 test images a class, MNIST 980 zeros.
    assert sizes[0] == (980 if name == "mnist" else 1000)
    # Levels use the whole range and are no constant.
    assert data.images.min() == 0
    assert data.images.max() == 255
