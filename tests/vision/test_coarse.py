"""Label maps: each scheme against its formula, explicit tables, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nctheory import vision


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
@given(st.sampled_from(vision.SCHEMES), st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_every_scheme_covers_all_labels_with_balanced_sizes(scheme, first, second, seed):
    num_coarse, num_fine = sorted((first, second))
    mapping = vision.label_map(scheme, num_fine=num_fine, num_coarse=num_coarse, seed=seed)
    assert mapping.num_fine == num_fine
    assert sum(mapping.clusters_per_label) == num_fine
    assert min(mapping.clusters_per_label) >= 1
    assert max(mapping.clusters_per_label) - min(mapping.clusters_per_label) <= 1


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
        ({"scheme": "modulo"}, r"Argument `scheme` must be one of \['consecutive', 'mod', 'random'\]"),
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
