"""What the figures of coarse labels share: relative distances of classes, means over seeds, and the matrix drawn."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from nctheory.figures import coarse_images, coarse_labels

# Classes 0 and 2 are merged, and so are 1 and 3.
LABELS = [0, 1, 0, 1]
ORDER = [0, 2, 1, 3]


def record(seeds):
    """A record of one step: squared distances of class means and variances of every seed."""
    distances, variances = (np.stack(each) for each in zip(*seeds, strict=True))
    return xr.Dataset(
        {
            "class_distances": (("seed", "fine", "other_fine"), distances),
            "within_variances": (("seed", "fine"), variances),
            "coarse_label": ("fine", LABELS),
        },
        {"fine": list("abcd")},
    )


def drawn(seed):
    """Class means and variances at random."""
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(4, 3))
    return ((means[:, None] - means[None]) ** 2).sum(axis=2), generator.uniform(0.1, 1, 4)


def literal(distances, variances):
    found = np.empty((4, 4))
    for i, a in enumerate(ORDER):
        for j, b in enumerate(ORDER):
            found[i, j] = distances[a, b] + variances[a] + variances[b]
    return found / found.max()


def test_relative_distances_are_averaged_over_the_seeds_that_have_them():
    good, other = drawn(0), drawn(1)
    diverged = np.where(np.eye(4) == 1, np.nan, 1.0), np.ones(4)
    one_point = np.zeros((4, 4)), np.zeros(4)
    wanted = (literal(*good) + literal(*other)) / 2
    found = coarse_labels.relative_distances(record([good, diverged, other, one_point]))
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    # Other units of a seed's features change nothing.
    rescaled = record([good, tuple(100 * each for each in other)])
    np.testing.assert_allclose(coarse_labels.relative_distances(rescaled), wanted, rtol=1e-14)
    assert np.isnan(coarse_labels.relative_distances(record([diverged, one_point]))).all()


def test_both_records_give_the_same_matrix():
    first, last = record([drawn(0), drawn(1)]), record([drawn(2), drawn(3)])
    merge = {"coarse_label": first["coarse_label"]}
    steps = [each.drop_vars("coarse_label") for each in (first, last)]
    images = xr.concat(steps, "checkpoint").assign(merge)
    labels = xr.concat(steps, "step").expand_dims(arm=["plain"]).assign(merge)
    wanted = coarse_labels.relative_distances(last)
    np.testing.assert_array_equal(coarse_images.distance_matrix(images, -1), wanted)
    np.testing.assert_array_equal(coarse_labels.distance_matrix(labels, "plain", -1), wanted)


def test_mean_over_seeds_passes_over_lost_ones():
    values = np.array([[1.0, 2.0, 5.0], [3.0, np.nan, np.nan], [2.0, 4.0, np.nan]])
    found = coarse_labels.mean_over_seeds(values)
    np.testing.assert_allclose(found["measured"], [2, 3, 5])
    # Student's 97.5 % quantiles with 2 and 1 degrees of freedom, times s/sqrt(n).
    half = np.array([4.302652730 / np.sqrt(3), 12.706204736])
    np.testing.assert_allclose(found["low"][:2], [2 - half[0], 3 - half[1]], rtol=1e-8)
    np.testing.assert_allclose(found["high"][:2], [2 + half[0], 3 + half[1]], rtol=1e-8)
    assert np.isnan([found["low"][2], found["high"][2]]).all()


@pytest.mark.parametrize(("most_names", "names"), [(4, ["a", "c", "b", "d"]), (3, [])])
def test_matrix_is_drawn_with_names_and_lines_between_super_classes(most_names, names):
    history = record([drawn(0)])
    axes = Figure().subplots()
    matrix = coarse_labels.relative_distances(history)
    image = coarse_labels.draw_matrix(axes, matrix, history, "trained", most_names=most_names, rotation=90)
    np.testing.assert_array_equal(image.get_array(), matrix)
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert all(label.get_rotation() == 90 for label in axes.get_xticklabels())
    # A horizontal and a vertical line, and no other.
    ends = [tuple(map(list, line.get_data())) for line in axes.get_lines()]
    assert ends == [([0, 1], [1.5, 1.5]), ([1.5, 1.5], [0, 1])]
    assert axes.get_title() == "trained"
