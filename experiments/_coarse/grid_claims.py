"""Claims about the grid of learning rates and weight decays, and the printed table, from the record alone."""

from typing import TYPE_CHECKING, Any

from _shared.ranks import permuted_correlation, rank_correlation
from _shared.text import shown

from nctheory.claims import AtLeast, AtMost, ClaimSpec, Ledger, mean_interval

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

# A cell has forgotten its initial weights, or kept them, by the square of what weight decay alone leaves of them.
FORGOTTEN, KEPT = 1e-6, 0.5
FITTED = 0.99
LEFT_SHARE, EROSION_MARGIN, PROBE_SHARE, CORRELATION = 0.05, 0.10, 0.85, 0.3
NUM_PERMUTATIONS = 200


def final(history: "xr.Dataset", name: str) -> "np.ndarray":
    """A score at the last checkpoint, (learning rate, weight decay, seed, ...)."""
    return history[name].isel(checkpoint=-1).values


def memory(history: "xr.Dataset") -> "np.ndarray":
    """exp(-2 lambda sum(rates) / (1 - momentum)) in its exact form, (learning rate, weight decay, checkpoint)."""
    return history["memory_factor"].values ** 2


def fitted(history: "xr.Dataset") -> "np.ndarray":
    """Whether a cell ends with its train labels predicted, on average over the seeds that did not diverge."""
    import numpy as np

    return np.ma.masked_invalid(final(history, "train_accuracy")).mean(axis=-1).filled(0.0) >= FITTED


def _over(cells: "np.ndarray", values: "np.ndarray", reduce: Any) -> "np.ndarray":
    """Reduce (learning rate, weight decay, seed) over chosen cells; NaN for every seed if there are none."""
    import numpy as np

    return reduce(values[cells], axis=0) if cells.any() else np.full(values.shape[-1], np.nan)


def judge(history: "xr.Dataset") -> Ledger:
    """Judge the claims; their criteria stand here and do not depend on the data.

    Only cells that fit their train labels count: in the others the assumption of the question is not met. Values are
    paired by seed. The claims say what was seen on digits with other seeds than the reported ones; where another set
    refutes them, that is its answer.
    """
    import numpy as np

    source = "derived here; question of Yang, Steinhardt, Hu 2023"
    left, usable = memory(history)[..., -1], fitted(history)
    forgotten, kept = usable & (left <= FORGOTTEN), usable & (left >= KEPT)
    clp, probe = final(history, "clp"), final(history, "fine_probe")
    surrogate = final(history, "surrogate")[..., 0]
    share = np.abs(final(history, "remaining_share"))

    statement = f"Cells with memory <= {FORGOTTEN:g} have lost their initial weights (largest share left)."
    spec = ClaimSpec("forgotten", source, statement, 0.0, AtMost(LEFT_SHARE))
    rows = [spec.judge(mean_interval(_over(forgotten, share, np.max)))]
    instead = f"Cells with memory >= {KEPT:g} instead (smallest share)."
    rows.append(spec.control("kept", instead, mean_interval(_over(kept, share, np.min))))

    statement = f"Clusters find fewer of the original classes there than in cells with memory >= {KEPT:g} (difference)."
    spec = ClaimSpec("eroded", source, statement, float("nan"), AtLeast(EROSION_MARGIN))
    reference = _over(kept, clp, np.mean)
    rows.append(spec.judge(mean_interval(reference - _over(forgotten, clp, np.mean))))
    halves = [_over(half, clp, np.mean) for half in _alternate(kept, left)]
    rows.append(spec.control("kept", "Every second of the latter instead.", mean_interval(halves[0] - halves[1])))

    statement = "A probe with true classes still finds them there (ratio of accuracies)."
    spec = ClaimSpec("linear", source, statement, 1.0, AtLeast(PROBE_SHARE))
    reference = _over(kept, probe, np.mean)
    rows.append(spec.judge(mean_interval(_over(forgotten, probe, np.mean) / reference)))
    without = _over(forgotten, surrogate, np.mean) / reference
    rows.append(spec.control("surrogate", "Clusters of a surrogate without sub-clusters.", mean_interval(without)))

    statement = "Recovery falls with the memory from cell to cell (rank correlation)."
    spec = ClaimSpec("falls-with-memory", source, statement, float("nan"), AtLeast(CORRELATION))
    rows.append(spec.judge(mean_interval(correlation_with_memory(history))))
    shuffled = correlation_with_memory(history, num_permutations=NUM_PERMUTATIONS)
    rows.append(spec.control("shuffled", "Cells shuffled (mean of many).", mean_interval(shuffled)))
    return Ledger(rows)


def _alternate(cells: "np.ndarray", order: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Split chosen cells into every second one, in the order of a number."""
    import numpy as np

    chosen = np.argwhere(cells)[np.argsort(order[cells], kind="stable")]
    halves = np.zeros((2, *cells.shape), bool)
    for rank, place in enumerate(chosen):
        halves[(rank % 2, *place)] = True
    return halves[0], halves[1]


def _fitted_ends(history: "xr.Dataset") -> "tuple[np.ndarray, np.ndarray]":
    """Memory at the end of every fitted cell, and its recovery with one row a seed."""
    usable = fitted(history)
    return memory(history)[..., -1][usable], final(history, "clp")[usable].T


def correlation_with_memory(history: "xr.Dataset", *, num_permutations: int = 0) -> "np.ndarray":
    """Spearman correlation of recovery with the memory over fitted cells at their ends, for each seed.

    With `num_permutations`, the mean after so many random permutations of the cells. NaN where fewer than three cells
    fit, or all have one recovery.
    """
    import numpy as np

    left, recovery = _fitted_ends(history)
    if len(left) < 3:
        return np.full(history.sizes["seed"], np.nan)
    if num_permutations:
        return permuted_correlation(left, recovery, num_permutations=num_permutations)
    return rank_correlation(left, recovery)


def table(history: "xr.Dataset") -> str:
    """What was run, every cell at its end, and the references: means over seeds."""
    import numpy as np

    facts = history.attrs
    left, usable, share = memory(history)[..., -1], fitted(history), final(history, "remaining_share")
    names = ("train_accuracy", "test_accuracy", "clp", "fine_probe", "nc1", "ratio", "separation")
    scores = {name: final(history, name).mean(axis=-1) for name in names}
    scores["surrogate"] = final(history, "surrogate")[..., 0].mean(axis=-1)
    lines = [
        f"{facts['dataset']} ({facts['copy']}), labels {facts['labels']}, {facts['network']}, augmentation "
        f"{facts['augment']}; {int(history['step'][-1])} steps; {facts['hardware']}",
        "rate    decay   memory   share    train  test   CLP    probe  surrog. NC1       q        s",
    ]
    for i, rate in enumerate(history["learning_rate"].values):
        for j, decay in enumerate(history["weight_decay"].values):
            row = {name: value[i, j] for name, value in scores.items()}
            remark = "" if usable[i, j] else "  not fitted"
            lines.append(
                f"{rate:<7g} {decay:<7g} {left[i, j]:<8.1e} {share[i, j].mean():<8.3f} {row['train_accuracy']:.3f}  "
                f"{row['test_accuracy']:.3f}  {row['clp']:.3f}  {row['fine_probe']:.3f}  {row['surrogate']:.3f}   "
                f"{row['nc1']:<9.2e} {row['ratio']:<8.3f} {row['separation']:.3f}{remark}"
            )
    untrained = history["clp"].isel(checkpoint=0).values.reshape(-1, history.sizes["seed"]).mean(axis=0)
    levels = {
        "untrained network, cluster and probe": untrained,
        "raw pixels (PCA), cluster and probe": history["raw_clp"].values,
        "raw pixels (PCA), true classes": history["raw_fine_probe"].values,
        "rank correlation of recovery with memory": correlation_with_memory(history),
    }
    lines += [f"{name:<51}{shown(np.asarray(values))}" for name, values in levels.items()]
    return "\n".join(lines)
