"""Claims with criteria and controls, judged from the stored record alone.

The statements are those of the abstract of Hui, Belkin and Nakkiran (2022), whose text was not at hand; definitions and
criteria are this project's working ones and were fixed, as was "at least 6 of 8 seeds", before these seeds were run.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from _shared.counts import PASSING, share_of_seeds

from _generalisation import numbers as of
from nctheory.claims import AtLeast, AtMost, Claim, ClaimSpec, Criterion, Interval, Within, mean_interval

SOURCE = "after the abstract of Hui et al. 2022; definition and criterion of this project"
NEEDED = AtLeast(PASSING)
_NONE = float("nan")


class Conditions:
    """Numbers of a part, by condition, as intervals over seeds."""

    def __init__(self, data: xr.Dataset, numbers: xr.Dataset):
        self._finite, self._numbers = data["finite"], numbers

    def mean(self, name: str, condition: str = "decay", **where: Any) -> Interval:
        """Mean over seeds; a run that was lost, or has no t_int where one is needed, counts as not finite."""
        values = self._numbers[name].sel({"condition": condition, **where}).astype(float)
        return mean_interval(values.where(self._finite.sel(condition=condition)).values)

    def count(self, passed: xr.DataArray, condition: str = "decay") -> Interval:
        """Share of seeds that pass."""
        return share_of_seeds(passed.sel(condition=condition), self._finite.sel(condition=condition))


def _spec(name: str, statement: str, criterion: Criterion, source: str = SOURCE) -> ClaimSpec:
    return ClaimSpec(name, source, statement, _NONE, criterion)


def judge_collapse(data: xr.Dataset) -> list[Claim]:
    """Collapse on train without collapse on test, and its cascade over layers."""
    numbers = of.collapse_numbers(data)
    runs = Conditions(data, numbers)
    passed = of.collapse_passes(numbers)
    spec = _spec(
        "H1", "Share of seeds that collapse on train but not on test (all criteria of H1/... at once).", NEEDED
    )
    rows = [
        spec.judge(runs.count(passed)),
        spec.control(
            "no-decay",
            "Without weight decay, where the train set does not collapse either.",
            runs.count(passed, "no_decay"),
        ),
    ]
    return [*rows, *_judge_growth(runs), *_judge_test(runs), *_judge_cascade(data)]


def _judge_growth(runs: Conditions) -> list[Claim]:
    """Collapse on train and the gap to the test set, each against the runs without weight decay."""
    singles: list[tuple[str, str, Criterion, str]] = [
        ("q-train", "q_train(T)/q_train(t_int): the train set collapses.", AtMost(0.1), "q_train_change"),
        ("gap", "Gap g(T) = q_test/q_train at the end.", AtLeast(4.0), "gap"),
        ("gap-growth", "g(T)/g(t_int): the gap opens.", AtLeast(2.0), "gap_growth"),
        # Its control is not the train images, whose W is at most S = r by definition.
        (
            "weak",
            "W(T)/r_train(T): test images stay away from every train class mean.",
            AtLeast(2.0),
            "weak_over_train",
        ),
    ]
    rows = []
    for name, statement, criterion, variable in singles:
        each = _spec(f"H1/{name}", statement, criterion)
        without = runs.mean(variable, "no_decay")
        rows += [each.judge(runs.mean(variable)), each.control("no-decay", "Without weight decay.", without)]
    return rows


def _judge_test(runs: Conditions) -> list[Claim]:
    """No collapse on test."""
    stays = _spec("H1/q-test", "q_test(T)/q_test(t_int): the test set does not collapse.", AtLeast(0.1))
    instead = runs.mean("q_train_change")
    return [
        stays.judge(runs.mean("q_test_change")),
        stays.control("train-images", "q_train in place of q_test.", instead),
    ]


def _judge_cascade(data: xr.Dataset) -> list[Claim]:
    numbers = of.cascade_numbers(data)
    runs = Conditions(data, numbers)
    passed = of.cascade_passes(numbers)
    whole = _spec(
        "H3",
        "Share of seeds with a cascade: deeper layers collapse more and no later, at least half of the hidden layers "
        "with one inside among them, and their test/train ratio of r grows with depth.",
        NEEDED,
    )
    depth = _spec("H3/depth", "Rank correlation of layer and r_l(T).", AtMost(-0.9))
    share = _spec("H3/layers", "Share of hidden layers with r_l(T) <= 0.1 r_l(0).", AtLeast(0.5))
    ratio = _spec(
        "H3/test-over-train",
        "Rank correlation of layer and r_test/r_train at the end (not by itself a sign of collapse: the order is the "
        "same, the growth weak, without weight decay).",
        AtLeast(0.9),
    )
    return [
        whole.judge(runs.count(passed)),
        whole.control("no-decay", "Without weight decay.", runs.count(passed, "no_decay")),
        depth.judge(runs.mean("depth_r")),
        depth.control("untrained", "Before training.", runs.mean("depth_r_initial")),
        share.judge(runs.mean("collapsed_share")),
        share.control("no-decay", "Without weight decay.", runs.mean("collapsed_share", "no_decay")),
        ratio.judge(runs.mean("depth_test_over_train")),
        ratio.control("no-decay", "Without weight decay.", runs.mean("depth_test_over_train", "no_decay")),
    ]


def judge_transfer(data: xr.Dataset) -> list[Claim]:
    """Features of a network trained on two super-classes, probed for the original classes."""
    numbers = of.transfer_numbers(data)
    runs = Conditions(data, numbers)
    passed = of.transfer_passes(numbers)
    whole = _spec(
        "H2",
        "Share of seeds whose features transfer worse the longer they train: ridge probe at least 0.2 below its peak "
        "after t_int, super-class test accuracy kept, rank correlations with epoch <= -0.6 and with q_train >= 0.5.",
        NEEDED,
    )
    drop = _spec("H2/drop", "Ridge probe on the original classes: peak after t_int less the end.", AtLeast(0.2))
    time = _spec("H2/time", "Rank correlation of epoch and ridge probe from t_int on.", AtMost(-0.6))
    with_q = _spec("H2/collapse", "Rank correlation of q_train and ridge probe from t_int on.", AtLeast(0.5))
    return [
        whole.judge(runs.count(passed)),
        whole.control(
            "no-decay", "As many epochs without weight decay, hence with less collapse.", runs.count(passed, "no_decay")
        ),
        drop.judge(runs.mean("drop", probe="ridge")),
        drop.control("no-decay", "As many epochs without weight decay.", runs.mean("drop", "no_decay", probe="ridge")),
        time.judge(runs.mean("with_time")),
        time.control("no-decay", "As many epochs without weight decay.", runs.mean("with_time", "no_decay")),
        with_q.judge(runs.mean("with_q")),
        with_q.control("no-decay", "As many epochs without weight decay.", runs.mean("with_q", "no_decay")),
        *_judge_driver(data, numbers),
    ]


def _judge_driver(data: xr.Dataset, numbers: xr.Dataset) -> list[Claim]:
    """Collapse and probe over all runs, which train equally long, against what the two conditions alone give."""
    spec = _spec(
        "H2/runs",
        "Rank correlation of q_train(T) and ridge probe at T over all runs, with and without decay, equally long (two "
        "groups of equal size that do not overlap give 0.75 by themselves, without any relation inside a group).",
        AtLeast(0.7),
    )
    order = ("condition", "seed")
    keep = data["finite"].transpose(*order).values
    q = numbers["q_train"].transpose(*order).values
    probe = numbers["final"].sel(probe="ridge").transpose(*order).values
    lost = int((~data["finite"]).any("condition").sum())

    def one(value: float, words: str) -> Interval:
        return Interval(value, value, value, data.sizes["seed"], lost, words)

    generator = np.random.default_rng(1)

    def permuted() -> float:
        rows = [generator.permutation(row[kept]) for row, kept in zip(probe, keep, strict=True)]
        return of.spearman(q[keep], np.concatenate(rows))

    method = f"one rank correlation of {int(keep.sum())} runs, without interval"
    within = float(np.mean([permuted() for _ in range(200)]))
    text = "Probes in random order inside each condition: what the two groups alone give."
    return [
        spec.judge(one(of.spearman(q[keep], probe[keep]), method)),
        spec.control("within", text, one(within, "mean of 200 random orders")),
    ]


def judge_samples(data: xr.Dataset) -> list[Claim]:
    """Dependence on the number of train samples."""
    numbers = of.sample_numbers(data)
    finite = data["finite"].all("size")

    def mean(name: str) -> Interval:
        return mean_interval(numbers[name].where(finite).values)

    names = ("least_gap", "slope_test", "q_test_last")
    passed = of.sample_passes(*(numbers[name] for name in names))
    before = of.sample_passes(*(numbers[f"{name}_initial"] for name in names))
    whole = _spec(
        "H1-n",
        "Share of seeds with q_test >= 3 q_train at every n, log-log slope of q_test in [-0.9, -0.3] and "
        "q_test > 0.03 at the largest n.",
        NEEDED,
    )
    least = _spec("H1-n/gap", "Smallest q_test/q_train over all n.", AtLeast(3.0))
    slope = _spec(
        "H1-n/slope", "Log-log slope of q_test(T) against n: more samples, more collapse on test.", Within(-0.9, -0.3)
    )
    return [
        whole.judge(share_of_seeds(passed, finite)),
        whole.control("untrained", "Before training.", share_of_seeds(before, finite)),
        least.judge(mean("least_gap")),
        least.control("untrained", "Before training.", mean("least_gap_initial")),
        slope.judge(mean("slope_test")),
        slope.control("train-images", "q_train in place of q_test.", mean("slope_train")),
    ]


JUDGES: dict[str, Callable[[xr.Dataset], list[Claim]]] = {
    "collapse": judge_collapse,
    "transfer": judge_transfer,
    "samples": judge_samples,
}
"""How each part is judged."""


def judge_image_collapse(data: xr.Dataset) -> list[Claim]:
    """Train without test collapse, and cascade, of image networks: counts of seeds alone, because seeds are few."""
    numbers, layers = of.collapse_numbers(data), of.cascade_numbers(data)
    runs = Conditions(data, numbers)
    spec = _spec(
        "H1",
        "Share of seeds with train accuracy >= 0.999, q_train(T) <= 0.1 q_train(t_int), gap >= 5 and growing.",
        NEEDED,
    )
    rows = _judge_condition(spec, runs, of.image_collapse_passes(numbers))
    spec = _spec(
        "H3",
        "Share of seeds with a cascade: rank correlation of layer and r_l(T) <= -0.8, r_l falls to a tenth in half of "
        "the layers with one inside, later layers halve no later, test/train ratio grows with depth (>= 0.8).",
        NEEDED,
    )
    return [*rows, *_judge_condition(spec, runs, of.image_cascade_passes(layers))]


def _judge_condition(spec: ClaimSpec, runs: Conditions, passed: xr.DataArray) -> list[Claim]:
    """A claim about the runs with decay, and as its control the runs without, where there are any."""
    rows = [spec.judge(runs.count(passed))]
    if "no_decay" in passed["condition"]:
        words = "As many epochs without weight decay, which may collapse all the same."
        rows.append(spec.control("no-decay", words, runs.count(passed, "no_decay")))
    return rows


def judge_image_transfer(data: xr.Dataset) -> list[Claim]:
    """Features of image networks trained on two super-classes: counts of seeds alone."""
    numbers = of.transfer_numbers(data)
    runs = Conditions(data, numbers)
    passed = of.image_transfer_passes(numbers)
    spec = _spec(
        "H2",
        "Share of seeds whose ridge probe ends at least 0.05 below its peak after t_int, super-class test accuracy "
        "kept, rank correlation of q_train and probe >= 0.5.",
        NEEDED,
    )
    return _judge_condition(spec, runs, passed)


def judge_all(tree: xr.DataTree) -> tuple[Claim, ...]:
    """Judge the claims of every part that was run."""
    if tree.attrs.get("kind") == "images":
        judges = {"collapse": judge_image_collapse, "transfer": judge_image_transfer}
        return tuple(
            claim for name, judge in judges.items() if name in tree for claim in judge(tree[name].to_dataset())
        )
    return tuple(claim for name, judge in JUDGES.items() if name in tree for claim in judge(tree[name].to_dataset()))
