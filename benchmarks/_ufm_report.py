"""What the benchmark of the unconstrained feature model prints, and the rows that it comes down to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks import _peers
from benchmarks._table import Row, within

if TYPE_CHECKING:
    from benchmarks.ufm_speed import Size

GAP = 1e-6
TIMES_LBFGS, TIMES_DESCENT, CLOSED_FORM_SECONDS = 8.0, 3.0, 1.0
PLAIN = ("PyTorch loop, autograd", "PyTorch vmap over seeds")
"""Descent as most people write it."""
SOLVERS = {
    "times_lbfgs": ("PyTorch", False),
    "times_lbfgs_averaged": ("PyTorch", True),
    "times_scipy": ("SciPy", False),
    "times_scipy_averaged": ("SciPy", True),
}
"""Ratios of solvers: whose L-BFGS, and whether classes are averaged for it too."""


def fastest(runs: Mapping[str, Mapping[str, Any]], whose: str, averaged: bool) -> str | None:
    """Name of the fastest setting of a peer among those that stall least; None if there is none."""
    names = [name for name in runs if name.startswith(whose) and ("averaged" in name) == averaged]
    return min(names, key=lambda name: (runs[name]["stalled"], runs[name]["seconds"]), default=None)


def solver_ratios(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """How many times faster ours is than the best setting of each peer; None without the peer."""
    names = {key: fastest(runs, *which) for key, which in SOLVERS.items()}
    ours = runs["nctheory"]["seconds"]
    return {key: None if name is None else runs[name]["seconds"] / ours for key, name in names.items()}


def show_solvers(size: "Size", row: dict[str, Any], num_seeds: int) -> None:
    """Print the comparison of solvers."""
    print(f"\n{size.name}: seconds to a relative gap of {GAP:g} for {num_seeds} seeds, minimum {row['minimum']:.9f}")
    print(f"{'':<48} {'seconds':>9} {'evaluations':>12} {'largest gap':>12} {'beyond':>12} {'below':>6}")
    for name, run in row["runs"].items():
        beyond = f"{run['beyond_gap']} of {run['seeds_run']}"
        figures = f"{run['seconds']:>9.2f} {run['evaluations']:>12.0f} {run['largest_gap']:>12.1e} {beyond:>12}"
        print(f"{name:<48} {figures} {run['below_minimum']:>6}")
    ours = row["runs"]["nctheory"]
    print(
        f"ours: compiled in {ours['compile_s']:.1f} s, gradient norm <= {ours['largest_gradient_norm']:.1e}, ", end=""
    )
    print(f"{ours['not_converged']} not converged")
    for key, (whose, averaged) in SOLVERS.items():
        if row[key] is not None:
            target = f"target {TIMES_LBFGS:g}" if key == "times_lbfgs" else "no target"
            also = ", classes averaged for it as well" if averaged else ""
            print(f"times {whose} L-BFGS{also}: {row[key]:.1f}, {target}")


def show_descent(size: "Size", row: dict[str, Any]) -> None:
    """Print the comparison of descents."""
    print(f"\n{size.name}: descent, seed-steps/s; compiled in {row['compile_s']:.1f} s, chunks of {row['chunk_size']}")
    print(f"{'':<48} {'best':>10} {'median':>10} {'ours is':>9} {'float64 differ':>15}")
    for name, rate in row["seed_steps_per_s"].items():
        gap = f"{row['largest_relative_gap'][name]:.1e}" if name in row["largest_relative_gap"] else ""
        print(f"{name:<48} {rate['best']:>10,.0f} {rate['median']:>10,.0f} {row['times'][name]:>8.1f}x {gap:>15}")
    if row["times_better_of_loop_and_vmap"] is not None:
        print(f"times the better of loop and vmap: {row['times_better_of_loop_and_vmap']:.1f}, ", end="")
        print(f"target {TIMES_DESCENT:g}" if size.depth == 1 else "no target at this depth")


def show_closed_forms(row: dict[str, Any], num_sets: int) -> None:
    """Print the times of the closed forms."""
    print(f"\nclosed forms, {num_sets:,} parameter sets in one call, target {CLOSED_FORM_SECONDS:g} s")
    for name, timing in row.items():
        note = "" if timing["finite"] else "  NOT FINITE"
        print(f"{name:<48} {timing['best']:>9.4f} s, with compilation {timing['first']:.1f} s{note}")


def _solver_rows(size: Mapping[str, Any], runs: Mapping[str, Any], config: Mapping[str, Any], on: str) -> list[Row]:
    rows, ours = [], runs["nctheory"]["seconds"]
    what = f"certified minimisers, {size['name']}, {config['num_seeds']} starts"
    for key, (whose, averaged) in SOLVERS.items():
        name = fastest(runs, whose, averaged)
        peer = None if name is None else runs[name]["seconds"]
        note = "not measured" if name is None else f"scaled from {config['lbfgs_seeds']} starts"
        if name is not None and runs[name]["stalled"]:
            note += f", {runs[name]['stalled']} of them stalled"
        options: dict[str, Any] = {"required": TIMES_LBFGS if key == "times_lbfgs" else None, "note": note}
        options["peer_on"] = "" if name is None else _peers.device_of(name)[1]
        beside = f"{whose} L-BFGS" + (", classes averaged" if averaged else "")
        rows.append(Row(what, "s", ours, beside, peer, is_rate=False, ours_on=on, **options))
    return rows


def _descent_row(size: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]], on: str) -> Row:
    best = {name: rate["best"] for name, rate in rates.items()}
    plain = [name for name in best if _peers.device_of(name)[0] in PLAIN]
    name = max(plain, key=best.__getitem__, default=None)
    options: dict[str, Any] = {"required": TIMES_DESCENT if size["depth"] == 1 else None, "ours_on": on}
    options["peer_on"] = "" if name is None else _peers.device_of(name)[1]
    peer = None if name is None else best[name]
    beside = "better of PyTorch's loop and vmap"
    return Row(f"descent, {size['name']}", "seed-steps/s", best["nctheory sweep"], beside, peer, **options)


def table(record: Mapping[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    rows, config, on = [], record["config"], record.get("device", "cpu")
    for each in record["sizes"]:
        rows += _solver_rows(each["size"], each["solvers"]["runs"], config, on)
        rows.append(_descent_row(each["size"], each["descent"]["seed_steps_per_s"], on))
    slowest = max(timing["best"] for timing in record["closed_forms"].values())
    what = f"closed forms, {config['num_closed_forms']:,} parameter sets, the slowest"
    return [*rows, within(what, "s", slowest, CLOSED_FORM_SECONDS, ours_on=on)]
