"""Label maps: each scheme against its formula, explicit tables, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import vision
from nctheory.vision.coarse import SEMANTIC_GROUPS


def test_mod_and_consecutive_match_their_formulas():
    mod = vision.label_map("mod", num_fine=10, num_coarse=5)
    np.testing.assert_array_equal(mod.table, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    assert mod.coarse_names == ("0+5", "1+6", "2+7", "3+8", "4+9")
    assert mod.members(3) == (3, 8)
    assert mod.partner_order == (0, 5, 1, 6, 2, 7, 3, 8, 4, 9)
    assert mod.clusters_per_label == (2, 2, 2, 2, 2)
    consecutive = vision.label_map("consecutive", num_fine=10, num_coarse=5, fine_names=list("abcdefghij"))
    np.testing.assert_array_equal(consecutive.table, np.arange(10) // 2)
    assert consecutive.coarse_names[4] == "i+j"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["consecutive", "mod", "random"]), st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_every_scheme_covers_all_labels_with_balanced_sizes(scheme, first, second, seed):
    num_coarse, num_fine = sorted((first, second))
    mapping = vision.label_map(scheme, num_fine=num_fine, num_coarse=num_coarse, seed=seed)
    assert mapping.num_fine == num_fine
    assert sum(mapping.clusters_per_label) == num_fine
    assert min(mapping.clusters_per_label) >= 1
    assert max(mapping.clusters_per_label) - min(mapping.clusters_per_label) <= 1


NAMES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "fashion_mnist": "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot",
    "stl10": "airplane bird car cat deer dog horse monkey ship truck",
    "digits": "0 1 2 3 4 5 6 7 8 9",
    "mnist": "0 1 2 3 4 5 6 7 8 9",
    "svhn_cropped": "0 1 2 3 4 5 6 7 8 9",
}
MERGED = {
    "cifar10": {"airplane+ship", "automobile+truck", "bird+frog", "cat+dog", "deer+horse"},
    "fashion_mnist": {
        "T-shirt/top+Shirt",
        "Pullover+Coat",
        "Sandal+Sneaker",
        "Trouser+Dress",
        "Bag+Ankle-boot",
    },
    "stl10": {"airplane+ship", "bird+monkey", "car+truck", "cat+dog", "deer+horse"},
}
DIGITS = {"4+9", "3+5", "1+7", "0+6", "2+8"}


@pytest.mark.parametrize("dataset", sorted(SEMANTIC_GROUPS))
def test_semantic_merges_the_classes_that_are_named(dataset):
    mapping = vision.label_map(
        "semantic", num_fine=10, num_coarse=5, dataset=dataset, fine_names=NAMES[dataset].split()
    )
    assert set(mapping.coarse_names) == MERGED.get(dataset, DIGITS)
    assert mapping.scheme == "semantic"
    assert mapping.clusters_per_label == (2, 2, 2, 2, 2)
    # Super-classes come in the declared order.
    assert tuple(mapping.members(label) for label in range(5)) == tuple(map(tuple, SEMANTIC_GROUPS[dataset]))
    labels = vision.coarse_labels(np.arange(10), "semantic", num_fine=10, num_coarse=5, dataset=dataset)
    np.testing.assert_array_equal(labels, mapping.table)


def test_random_is_named_by_its_seed():
    maps = [vision.label_map("random", num_fine=10, num_coarse=5, seed=seed).table for seed in range(6)]
    again = vision.label_map("random", num_fine=10, num_coarse=5, seed=3).table
    np.testing.assert_array_equal(again, maps[3])
    assert len({tuple(table.tolist()) for table in maps}) > 1


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_labels_are_looked_up(asarray):
    fine = asarray(np.array([9, 0, 4, 5, 7, 1, 3]))
    expected = [4, 0, 4, 0, 2, 1, 3]
    np.testing.assert_array_equal(vision.coarse_labels(fine, "mod", num_fine=10, num_coarse=5), expected)
    mapping = vision.label_map([1, 0, 1], num_fine=3, num_coarse=2)
    assert mapping.scheme == "table"
    np.testing.assert_array_equal(vision.coarse_labels(asarray(np.array([0, 1, 2, 1])), mapping), [1, 0, 1, 0])
    assert len(jax.tree.leaves(mapping)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "modulo"}, r"Argument `scheme` must be one of \['consecutive', 'mod', 'random', 'semantic'\]"),
        (
            {"scheme": "semantic"},
            r"Argument `dataset` must name .* one of \['cifar10', .*'svhn_cropped'\], but is None",
        ),
        ({"scheme": "semantic", "dataset": "cifar100"}, r"Argument `dataset` must name .*but is 'cifar100'"),
        (
            {"scheme": "semantic", "dataset": "digits", "num_coarse": 4},
            r"Argument `num_coarse` must be 5 and `num_fine` 10 for scheme 'semantic' of digits, but they are 4 and 10",
        ),
        ({"scheme": "random"}, r"Argument `seed` must be an integer >= 0, but is None"),
        ({"scheme": "mod", "num_coarse": 11}, r"Argument `num_coarse` must be <= num_fine = 10, but is 11"),
        ({"scheme": "mod", "num_coarse": 0}, r"Argument `num_coarse` must be an integer >= 1, but is 0"),
        ({"scheme": [0, 1]}, r"Argument `scheme` must have shape \(10,\), but has shape \(2,\)"),
        ({"scheme": [0] * 9 + [5]}, r"Argument `scheme` must lie in 0..4, but spans 0..5"),
        ({"scheme": [0, 1, 2, 3] * 2 + [0, 1]}, r"Argument `scheme` must contain every class.* has no sample of \[4\]"),
        ({"scheme": [0.0] * 10}, r"Argument `scheme` must hold integers"),
        ({"scheme": "mod", "fine_names": ["a"]}, r"Argument `fine_names` must have shape \(10,\)"),
    ],
)
def test_bad_maps_are_refused(arguments, message, own_errors):
    with pytest.raises(ValueError, match=message):
        vision.label_map(**{"num_fine": 10, "num_coarse": 5, **arguments})


def test_bad_labels_are_refused(own_errors):
    with pytest.raises(ValueError, match=r"Argument `fine_labels` must lie in 0..9, but spans 0..10"):
        vision.coarse_labels(np.array([0, 10]), "mod", num_fine=10, num_coarse=5)
    with pytest.raises(ValueError, match=r"Argument `fine_labels` must reach every super-class.*'4\+9'"):
        vision.coarse_labels(np.arange(4), "mod", num_fine=10, num_coarse=5)
    with pytest.raises(ValueError, match=r"Argument `num_fine` must be an integer >= 1, but is None"):
        vision.coarse_labels(np.arange(4), "mod")
    with pytest.raises(ValueError, match=r"Argument `coarse_label` must lie in 0..4"):
        vision.label_map("mod", num_fine=10, num_coarse=5).members(5)
