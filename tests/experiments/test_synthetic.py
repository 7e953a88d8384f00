"""The synthetic experiment at its smallest size: what it stores, what it claims, and that both can be redrawn."""

import csv
import json
import shutil

import numpy as np
import pytest
import synthetic
import xarray as xr

from nctheory.claims import Ledger
from tests.experiments.conftest import run_here

GROUPS = {
    "free": {"seed", "step"},
    "memory": {"run", "weight_decay", "seed", "step", "pair"},
    "relu": {"noise", "same_cosine", "cross_cosine", "seed", "step", "pair"},
    "geometry": {"geometry", "weight_decay", "seed", "step"},
    "phase": {"same_cosine", "noise", "seed", "step"},
}


@pytest.fixture(scope="module")
def tree(synthetic_smoke):
    with xr.open_datatree(synthetic_smoke / "history.nc") as stored:
        return stored.load()


def test_the_run_folder_is_whole(synthetic_smoke):
    names = {path.name for path in synthetic_smoke.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "manifest.json", "history.nc", "claims.json", "figures", "parts"}
    config = json.loads((synthetic_smoke / "config.json").read_text())
    assert config["experiment"] == "synthetic"
    assert config["config"]["smoke"] is True
    manifest = json.loads((synthetic_smoke / "manifest.json").read_text())
    assert {"commit", "dirty", "versions", "machine", "device", "dtype", "command"} <= set(_flat(manifest))
    assert manifest["compile_seconds"] > 0
    assert manifest["run_seconds"] > 0
    assert {"free", "geometry", "relu", "phase"} <= set(manifest["sweeps"])
    for sweep in manifest["sweeps"].values():
        assert sweep["nonfinite_rows"] == sweep["resumed_rows"] == 0


def _flat(mapping):
    for name, value in mapping.items():
        yield name
        if isinstance(value, dict):
            yield from _flat(value)


def test_the_history_has_its_groups_dimensions_and_units(tree):
    assert set(tree.children) == set(GROUPS)
    for name, dims in GROUPS.items():
        data = tree[name].to_dataset()
        assert set(data.sizes) == dims
        assert data.sizes["seed"] == (2 if name == "phase" else 4)
        assert data.step.values[0] == 0
        assert (np.diff(data.step.values) > 0).all()
        for variable in data.data_vars.values():
            assert variable.attrs["units"] in ("dimensionless", "steps"), variable.name
            assert variable.attrs["definition"], variable.name
            assert set(variable.dims) <= dims


def test_the_history_holds_what_training_did(tree):
    for name, variable in (("free", "objective"), ("memory", "objective"), ("relu", "objective")):
        objective = tree[name][variable]
        assert np.isfinite(objective).all()
        assert (objective.isel(step=-1) < objective.isel(step=0)).all()
    # Seeds are seeds: no two of them agree.
    final = tree["memory"]["ratio"].isel(run=0, weight_decay=0, step=-1).values
    assert len(np.unique(final)) == 4
    assert (tree["phase"]["accuracy"].isel(step=-1, noise=0) == 1).all()


def test_every_claim_has_a_control_and_the_table_shows_all(synthetic_smoke):
    ledger = Ledger.read(synthetic_smoke / "claims.json")
    claims = [claim for claim in ledger.claims if claim.role == "claim"]
    assert {claim.id.split("/")[0] for claim in claims} == {"L0", "L1", "L2", "L3"}
    for claim in claims:
        assert ledger.controls(claim.id), claim.id
        assert claim.num_seeds == 4
        assert claim.num_nonfinite == 0
        assert claim.source
    # The exact laws do not need the size of a full run.
    verdicts = {claim.id: claim.verdict for claim in claims}
    exact = ["L0/minimum-loss", "L1/exact-logistic-float64", "L3/ratio", "L3/certificate", "L3/symmetric-collapse"]
    assert {verdicts[name] for name in exact} == {"supported"}
    for name in exact:
        assert {control.verdict for control in ledger.controls(name)} == {"refuted"}, name
    printed = synthetic_smoke.with_suffix(".txt").read_text()
    assert f"{len(ledger.claims)} records" in printed
    for claim in claims:
        # Long ids are shortened in the table.
        assert claim.id[:15] in printed


def test_figures_are_drawn(synthetic_smoke):
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        content = (synthetic_smoke / "figures" / f"synthetic_laws.{suffix}").read_bytes()
        assert content.startswith(start)
        assert len(content) > 20_000


def test_plot_only_needs_the_history_alone_and_reproduces_the_claims(synthetic_smoke, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(synthetic_smoke, copy, ignore=shutil.ignore_patterns("parts", "figures", "claims.json", ".lock"))
    history = (copy / "history.nc").read_bytes()
    result = run_here("experiments/synthetic.py", "--plot-only", "--out", copy)
    # The smallest run is too small for some claims, and redrawing it must not fail over them either.
    assert result.returncode == 0, result.stderr
    assert (copy / "claims.json").read_bytes() == (synthetic_smoke / "claims.json").read_bytes()
    assert {path.name for path in (copy / "figures").iterdir()} == {"synthetic_laws.png", "synthetic_laws.pdf"}
    assert (copy / "history.nc").read_bytes() == history
    table, original = (text.split(" records")[0] for text in (result.stdout, _printed(synthetic_smoke)))
    assert table == original


def _printed(folder):
    return folder.with_suffix(".txt").read_text()


def test_the_paper_figure_is_drawn_from_the_folder(synthetic_smoke, tmp_path):
    result = run_here("paper_figs/synthetic_laws.py", "--run", synthetic_smoke, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"synthetic_laws.{end}" for end in ("pdf", "png", "csv")}
    assert (tmp_path / "synthetic_laws.pdf").stat().st_size > 20_000
    with open(tmp_path / "synthetic_laws.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ledger = Ledger.read(synthetic_smoke / "claims.json")
    assert [(row["id"], row["verdict"]) for row in rows] == [(claim.id, claim.verdict) for claim in ledger.claims]
    assert [float(row["measured"]) for row in rows] == pytest.approx([claim.measured for claim in ledger.claims])


def test_a_failed_seed_is_counted_and_never_averaged_in(tree):
    damaged = tree.copy(deep=True)
    damaged["geometry"]["ratio"][:, :, 2, -1] = np.nan
    damaged["relu"]["ratio_by_noise"][:, 1, -1] = np.nan
    before, after = ({claim.id: claim for claim in synthetic.judge(t).claims} for t in (tree, damaged))
    assert list(before) == list(after)
    for name in ("L3/ratio", "L3/symmetric-collapse", "L2/ratio-limit", "L2/monotone-in-noise-q"):
        assert before[name].num_nonfinite == 0
        assert after[name].num_nonfinite == 1, name
        assert after[name].verdict == "inconclusive", name
    assert after["L3/certificate"] == before["L3/certificate"]


def test_a_broken_law_is_refuted(tree):
    broken = tree.copy(deep=True)
    broken["memory"]["distance"][..., -1, 0] *= 1 + 1e-6
    broken["geometry"]["ratio"][..., -1] *= 1 + 1e-4
    broken["free"]["objective"][..., -1] += 1e-6
    verdicts = {claim.id: claim.verdict for claim in synthetic.judge(broken).claims}
    assert {verdicts[f"{name}"] for name in ("L1/exact-logistic-float64", "L3/ratio", "L0/minimum-loss")} == {"refuted"}
