"""The embedded digits: content against scikit-learn, the fixed split, and errors that list what exists."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from nctheory import vision
from nctheory.vision import _tfds


def test_splits_partition_the_original_set():
    original, labels = load_digits(return_X_y=True)
    train, test = (vision.load("digits", split) for split in vision.SPLITS)
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.num_samples == 1437
    assert train.num_classes == 10
    assert train.class_names == tuple("0123456789")
    # The stored levels give the original ones back exactly, so rows can be compared as a multiset.
    rows = np.concatenate([np.round(part.images.reshape(-1, 64) * (16 / 255)) for part in (train, test)])
    ours = np.column_stack([rows, np.concatenate([train.labels, test.labels])])
    theirs = np.column_stack([original, labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_split_is_stratified_and_fixed():
    train, test = (vision.load("digits", split) for split in vision.SPLITS)
    fifth = (np.bincount(train.labels) + np.bincount(test.labels)) / 5
    assert np.all(np.abs(np.bincount(test.labels) - fifth) < 1)
    # The stride starts at the first sample of class 0 in scikit-learn's file.
    original, labels = load_digits(return_X_y=True)
    first_zero = original[np.flatnonzero(labels == 0)[0]]
    stored = np.round(test.images[np.flatnonzero(test.labels == 0)[0]].ravel() * (16 / 255))
    np.testing.assert_array_equal(stored, first_zero)


def test_levels_are_sixteenths():
    images = vision.load("digits", "train").images
    assert images.min() == 0
    assert images.max() == 255
    assert len(np.unique(images)) == 17
    np.testing.assert_allclose(np.unique(images) / 255, np.arange(17) / 16, atol=0.5 / 255)


def test_record_is_a_pytree_and_its_arrays_are_private_copies():
    first = vision.load("digits", "test")
    assert len(jax.tree.leaves(first)) == 2
    before = first.images[0, 4, 4, 0]
    first.images[0] = 255 - first.images[0]
    assert vision.load("digits", "test").images[0, 4, 4, 0] == before


def test_unknown_names_list_the_known_ones(own_errors):
    assert vision.dataset_names() == tuple(sorted(("digits", *_tfds.NAMES)))
    with pytest.raises(ValueError, match=r"Argument `name` must be one of .*'digits', .*'mnist', .*, but is 'mnits'"):
        vision.load("mnits", "train")
    with pytest.raises(ValueError, match=r"Argument `split` must be one of \['test', 'train'\], but is 'validation'"):
        vision.load("digits", "validation")
