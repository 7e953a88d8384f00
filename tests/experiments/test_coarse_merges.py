"""The comparison of merges at its smallest size: record, resume, pairings, scores, verdict logic, errors."""

import csv
import itertools
import json

import numpy as np
import pytest
import xarray as xr
from _merges import claims as merge_claims
from _merges import pairings, scoring, similarity
from _shared.ranks import rank_correlation

from nctheory import vision
from tests.experiments.conftest import assert_refused, history_of, run_here, run_script

SCRIPT = "experiments/coarse_merges.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One finished smoke run that the tests of this file share."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_script(SCRIPT, "--smoke", "--out", out)


def test_smoke_writes_a_whole_run_folder(smoke):
    out, result = smoke
    assert result.returncode == 0, result.stderr
    for words in ("semantic minus random", "surrogate without sub-clusters", "unlike-pairs-return"):
        assert words in result.stdout
    assert {"config.json", "manifest.json", "history.nc", "claims.json"} <= {path.name for path in out.iterdir()}
    assert {path.name for path in (out / "figures").iterdir()} == {"coarse_merges.pdf", "coarse_merges.png"}
    claims = json.loads((out / "claims.json").read_text())
    roles = [claim["role"] for claim in claims]
    assert roles.count("claim") == 8
    # Every claim has a control.
    assert {claim["claim_id"] for claim in claims if claim["role"] == "control"} == {
        claim["id"] for claim in claims if claim["role"] == "claim"
    }


def test_record_has_names_units_and_sensible_numbers(smoke):
    history = history_of(smoke[0])
    assert history["merge"].values.tolist() == ["mod", "consecutive", "semantic", "random-0", "random-1"]
    assert history["recovery"].dims == ("merge", "seed", "end", "pair")
    assert dict(history.sizes) == {
        "merge": 5, "seed": 2, "end": 2, "pair": 5, "draw": 2, "fine": 10, "other_fine": 10, "side": 2
    }  # fmt: skip
    for name, variable in history.data_vars.items():
        assert name == "member" or variable.attrs["units"] == "dimensionless", name
    for name in ("clp", "surrogate", "fine_probe", "recovery", "raw_clp", "raw_recovery", "input_probe_error"):
        finite = history[name].values[np.isfinite(history[name].values)]
        assert finite.size
        assert ((finite >= 0) & (finite <= 1)).all(), name
    np.testing.assert_array_equal(history["member"].sel(merge="mod"), [[c, c + 5] for c in range(5)])
    assert float(history["raw_clp"].mean()) > 0.8
    assert float(history["clp"].sel(end="initial").mean() - history["surrogate"].mean()) > 0.05
    assert abs(float(history["surrogate"].mean()) - 0.5) < 0.1
    # The mean over pairs agrees with the whole up to what is mistaken for another pair.
    whole, ceiling = history["clp"], history["clp_ceiling"]
    np.testing.assert_allclose((whole / ceiling).values, history["recovery"].mean("pair").values, atol=0.05)


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_numbers(smoke):
    out, _ = smoke
    before = history_of(out)
    missing = ("history.nc", "manifest.json", "claims.json", "parts/scores/semantic-1-final.npz", "parts/inputs.npz")
    for name in missing:
        (out / name).unlink()
    result = run_script(SCRIPT, "--smoke", "--resume", "--out", out)
    assert result.returncode == 0, result.stderr
    xr.testing.assert_identical(before, history_of(out))


@pytest.mark.slow
def test_paper_figure_and_its_numbers(smoke, tmp_path):
    out, _ = smoke
    result = run_here("paper_figs/coarse_merges.py", "--run", out, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"coarse_merges.{end}" for end in ("pdf", "png", "csv")}
    rows = list(csv.DictReader((tmp_path / "coarse_merges.csv").read_text().splitlines()))
    history = history_of(out)
    chosen = [row for row in rows if (row["scheme"], row["score"]) == ("mod", "recovery, trained")]
    assert [(row["first"], row["second"]) for row in chosen] == [(str(c), str(c + 5)) for c in range(5)]
    expected = history["recovery"].sel(merge="mod", end="final").mean("seed").values
    np.testing.assert_allclose([float(row["value"]) for row in chosen], expected, rtol=1e-5)  # Six digits.
    assert sum(row["panel"] == "scheme" for row in rows) == 4 * 6


@pytest.mark.slow
def test_image_networks_run_and_resume(tmp_path):
    out = tmp_path / "images"
    given = ("--smoke", "--network", "resnet-small", "--out", out)
    assert run_script(SCRIPT, *given).returncode == 0
    before = history_of(out)
    assert np.isfinite(before["recovery"]).all()
    assert json.loads((out / "config.json").read_text())["config"].keys().isdisjoint({"widths", "num_steps"})
    (out / "history.nc").unlink()
    result = run_here(SCRIPT, *given, "--resume")
    assert result.returncode == 0, result.stderr
    xr.testing.assert_identical(before, history_of(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-random", "1"), "Argument `num_random` must be an integer >= 2"),
        (("--dataset", "mnits"), "Argument `dataset` must be one of ['cifar10', 'cifar100', 'digits', "),
        (("--batch-size", "5000"), "Argument `batch_size` must be at most 1437 images, but is 5000"),
        (("--images.num-epochs", "3"), "Argument `images` must be left alone with network 'mlp'"),
        (("--network", "resnet-small", "--num-steps", "3"), "Argument `num_steps` must be left alone"),
        (("--plot-only",), "must be the folder of a finished run"),
    ],
)
def test_bad_arguments_end_as_one_line(arguments, message, tmp_path):
    result = run_here(SCRIPT, "--out", tmp_path / "new", *arguments)
    assert_refused(result.returncode, result.stderr, message, tmp_path / "new")


@pytest.mark.parametrize("num_fine", [4, 6, 10])
def test_random_pairings_hold_every_pair_once(num_fine):
    rounds = num_fine - 1
    tables = pairings.random_pairings(num_fine, 2 * rounds, seed=3)
    assert len(tables) == 2 * rounds
    for tournament in (tables[:rounds], tables[rounds:]):
        pairs = []
        for table in tournament:
            np.testing.assert_array_equal(np.bincount(table), np.full(num_fine // 2, 2))
            pairs += [tuple(np.flatnonzero(table == label).tolist()) for label in range(num_fine // 2)]
        assert sorted(pairs) == list(itertools.combinations(range(num_fine), 2))
    again = pairings.random_pairings(num_fine, 1, seed=3)
    np.testing.assert_array_equal(again[0], tables[0])
    # Pairings are uniform: over 300 seeds class 0 meets each other class about equally often.
    met = [t[0] for t in (np.flatnonzero(t == t[0])[1:] for t in _first_rounds(num_fine))]
    counts = np.bincount(met, minlength=num_fine)[1:]
    share = 1 / rounds
    assert np.abs(counts / 300 - share).max() < 5 * np.sqrt(share * (1 - share) / 300)  # Five standard errors.


def _first_rounds(num_fine):
    return [pairings.random_pairings(num_fine, 1, seed=seed)[0] for seed in range(300)]


def test_sets_without_declared_pairs_go_without_semantic():
    merges = pairings.all_merges("cifar100", tuple(map(str, range(100))), num_random=2, seed=0)
    assert [merge.name for merge in merges] == ["mod", "consecutive", "random-0", "random-1"]
    assert merges[0].label_map.members(3) == (3, 53)


def labelled(table, num_each, num_test_each=None):
    num_fine = len(table)
    mapping = vision.label_map(table, num_fine=num_fine, num_coarse=num_fine // 2)
    sizes = (num_each, num_test_each or num_each)
    return scoring.Labelled(tuple(np.repeat(np.arange(num_fine), size) for size in sizes), mapping)


def test_recovery_and_separation_against_counting():
    labels = labelled([0, 1, 0, 1], 5)
    generator = np.random.default_rng(0)
    predictions = np.array([0, 2, 0, 1, 0] + [1] * 5 + [0, 2, 3, 2, -1] + [0] * 5)
    found = scoring.recovery_of(predictions, labels)
    # Pair {0, 2}: 4 + 3 images stay in it (1, 3 and -1 leave), of which 3 + 2 are right; pair {1, 3}: class 3 leaves.
    np.testing.assert_allclose(found, [5 / 7, 1.0])
    assert np.isnan(scoring.recovery_of(np.full(20, -1), labels)).all()
    features = generator.standard_normal((20, 3))
    means, traces = (
        [function(features[labels.fine[0] == c]) for c in range(4)]
        for function in (lambda part: part.mean(axis=0), lambda part: np.trace(np.cov(part.T, bias=True)))
    )
    expected = [np.sum((means[a] - means[b]) ** 2) / (0.5 * (traces[a] + traces[b])) for a, b in ((0, 2), (1, 3))]
    np.testing.assert_allclose(scoring.separation_of(features, labels), expected, rtol=1e-12)


def test_scores_tell_kept_classes_from_lost_ones():
    """Pair {0, 2} keeps its two classes apart, pair {1, 3} is collapsed to one cloud."""
    labels = labelled([0, 1, 0, 1], 60)
    generator = np.random.default_rng(1)
    centers = np.array([[9.0, 0, 0, 4], [0, 9, 0, 0], [9, 0, 0, -4], [0, 9, 0, 0]])
    features = [centers[fine] + 0.5 * generator.standard_normal((240, 4)) for fine in labels.fine]
    found = scoring.score(features, labels, 0, trained=True)
    assert set(found) == set(scoring.score_names(trained=True))
    assert found["recovery"][0] == 1.0
    # 120 images by coin, five standard errors of 0.046.
    assert abs(found["recovery"][1] - 0.5) < 0.23
    assert np.abs(found["surrogate_recovery"] - 0.5).max() < 0.23
    assert found["separation"][0] > 10 > 1 > found["separation"][1]
    lost = scoring.score([features[0], np.full((240, 4), np.nan)], labels, 0, trained=False)
    assert set(lost) == set(scoring.score_names(trained=False))
    assert all(np.isnan(value).all() for value in lost.values())


def test_similarity_against_a_literal_reference():
    generator = np.random.default_rng(2)
    fine = (np.repeat(np.arange(3), 30), np.repeat(np.arange(3), 10))
    centers = np.array([[0.0, 0, 0], [0.3, 0, 0], [8, 0, 0]])
    rows = tuple(centers[part] + generator.standard_normal((len(part), 3)) for part in fine)
    components = similarity.principal_components(rows)
    found = similarity.of_classes(components, fine, 3)
    first, second = (rows[0][fine[0] == c] for c in (0, 2))
    spread = (first.var(axis=0).sum() + second.var(axis=0).sum()) / 2
    # All three components are kept, so that the rotation changes nothing.
    expected = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2) / spread
    np.testing.assert_allclose(found["input_distance"][0, 2], expected, rtol=1e-6)
    np.testing.assert_array_equal(found["input_distance"], found["input_distance"].T)
    assert np.isnan(np.diag(found["input_probe_error"])).all()
    assert found["input_probe_error"][0, 2] == 0.0 < 0.2 < found["input_probe_error"][0, 1]


def record(*, clp=(0.93, 0.82), slope=1.0, sorting=1.0, surrogate=0.5, accuracy=0.98, network="mlp", num_seeds=8):
    """A made-up record of all 45 pairs of ten classes and three named merges, with a little noise over seeds."""
    merges = pairings.all_merges("digits", tuple("0123456789"), num_random=9, seed=0)
    generator = np.random.default_rng(5)
    noise = lambda *shape: 0.005 * generator.standard_normal(shape)  # noqa: E731
    member = np.array([[m.label_map.members(label) for label in range(5)] for m in merges])
    distance = generator.uniform(0.5, 3, (10, 10))
    distance = (distance + distance.T) / 2
    of_pair = distance[member[..., 0], member[..., 1]][:, None, :]
    count, shape = len(merges), (len(merges), num_seeds)
    jitter = 0.3 * generator.standard_normal((*shape, 5))
    recovery = 0.75 + 0.08 * slope * (of_pair - 1.7) + 0.05 * jitter
    grown = np.exp(sorting * (of_pair - 1.7) + jitter)
    ends = ("merge", "seed", "end")
    return xr.Dataset(
        {
            "clp": (ends, np.stack([level + noise(*shape) for level in clp], axis=2)),
            "clp_ceiling": (ends, np.full((*shape, 2), 0.98)),
            "clp_chance": (ends, np.full((*shape, 2), 0.49)),
            "fine_probe": (("merge", "seed"), 0.97 + noise(*shape)),
            "surrogate": (("merge", "seed", "draw"), surrogate + noise(*shape, 2)),
            "test_accuracy": (ends, np.stack([0.2 + noise(*shape), accuracy + noise(*shape)], axis=2)),
            "recovery": ((*ends, "pair"), np.stack([recovery, recovery], axis=2)),
            "surrogate_recovery": (("merge", "seed", "pair"), 0.5 + noise(*shape, 5)),
            "probe_recovery": (("merge", "seed", "pair"), 0.97 + noise(*shape, 5)),
            "separation": ((*ends, "pair"), np.stack([np.ones_like(grown), grown], axis=2)),
            "raw_clp": ("merge", np.full(count, 0.94)),
            "raw_recovery": (("merge", "pair"), 0.94 + noise(count, 5)),
            "member": (("merge", "pair", "side"), member),
            "input_distance": (("fine", "other_fine"), distance),
            "input_probe_error": (("fine", "other_fine"), 1 / distance),
        },
        {
            "merge": [m.name for m in merges],
            "scheme": ("merge", [m.scheme for m in merges]),
            "end": ["initial", "final"],
            "fine": list("0123456789"),
        },
        {"network": network},
    )


def verdicts(history):
    return {row.id: row.verdict for row in merge_claims.judge(history).claims}


@pytest.mark.parametrize(("network", "clp"), [("mlp", (0.93, 0.82)), ("resnet-small", (0.6, 0.8))])
def test_ideal_data_support_every_claim_and_reject_every_control(network, clp):
    history = record(network=network, clp=clp)
    assert merge_claims.judge(history).failures() == []
    assert ("eroded" if network == "mlp" else "created") in verdicts(history)
    assert "semantic minus random, trained" in merge_claims.table(history)


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("fitted", {"accuracy": 0.6}),
        ("survives/random", {"surrogate": 0.8}),
        ("survives/semantic", {"surrogate": 0.8}),
        ("eroded", {"clp": (0.82, 0.93)}),
        ("created", {"clp": (0.8, 0.6), "network": "resnet-small"}),
        ("unlike-pairs-return", {"slope": -1.0}),
        ("unlike-pairs-return", {"slope": 0.0}),
        ("training-sorts-pairs", {"sorting": -1.0}),
        ("training-sorts-pairs", {"sorting": 0.0}),
    ],
)
def test_reversed_or_missing_effects_refute_their_claim(claim, change):
    assert verdicts(record(**change))[claim] == "refuted"


def test_diverged_seeds_are_never_averaged_in():
    history = record()
    for name in ("clp", "recovery"):
        history[name][4, 3] = np.nan
    rows = {row.id: row for row in merge_claims.judge(history).claims}
    for name in ("eroded", "survives/random", "unlike-pairs-return"):
        assert rows[name].num_nonfinite == 1
        assert rows[name].verdict == "inconclusive"
    assert rows["survives/mod"].verdict == "supported"
    from nctheory.figures import coarse_merges as figure
    from nctheory.vision.merges import pair_points

    points = pair_points(history, history["recovery"].sel(end="final"))
    assert points.values.shape == (8, 45)
    assert points.finite.shape == (7, 45)
    figure.draw(history)


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(3)
    first, second = generator.integers(0, 6, 20), generator.standard_normal((2, 20))
    # Pearson's correlation of ranks, ties sharing their mean rank.
    ranks = [[np.mean(np.flatnonzero(np.sort(row) == value)) for value in row] for row in (first, *second)]
    expected = [np.corrcoef(ranks[0], row)[0, 1] for row in ranks[1:]]
    np.testing.assert_allclose(rank_correlation(first, second), expected, rtol=1e-12)
    assert np.isnan(rank_correlation(first, np.ones(20))).all()
    assert np.isnan(rank_correlation(np.append(first[1:], np.nan), second)).all()
