"""Claims about image networks with their criteria and controls, and the printed table, from the record alone."""

from typing import TYPE_CHECKING, Any

from _shared.text import shown

from nctheory.claims import AtLeast, ClaimSpec, Ledger, mean_interval

if TYPE_CHECKING:
    import xarray as xr

RAW_MARGIN, SURROGATE_MARGIN, PROBE_SHARE, COARSE_ACCURACY = 0.40, 0.10, 0.95, 0.85
# Sets in which clustered pixels leave no room for 0.40.
RAW_MARGINS = {"digits": 0.05, "mnist": 0.05, "fashion_mnist": 0.05}


def judge(history: "xr.Dataset") -> Ledger:
    """Judge the claims; their criteria stand here and were written before any run.

    Differences and ratios are paired by seed, over seeds that did not diverge. With one seed there is no interval and
    every verdict is inconclusive.
    """
    source = "Yang, Steinhardt, Hu 2023 for the effect; criteria of this project"
    clp, raw = history["clp"].values, float(history["raw_clp"])
    surrogate = history["surrogate"].values[:, -1]
    probe, accuracy = history["fine_probe"].values[:, -1], history["test_accuracy"].values
    margin = RAW_MARGINS.get(history.attrs["dataset"], RAW_MARGIN)

    statement = "Clusters of the trained features beat clusters of raw pixels (difference of accuracies)."
    spec = ClaimSpec("above-pixels", source, statement, float("nan"), AtLeast(margin))
    rows = [spec.judge(mean_interval(clp[:, -1] - raw))]
    rows.append(spec.control("untrained", "The untrained network instead.", mean_interval(clp[:, 0] - raw)))

    statement = "They beat a Gaussian surrogate without sub-clusters (difference of accuracies)."
    spec = ClaimSpec("above-surrogate", source, statement, float("nan"), AtLeast(SURROGATE_MARGIN))
    rows.append(spec.judge(mean_interval(clp[:, -1] - surrogate[:, 0])))
    instead = "A second surrogate instead."
    rows.append(spec.control("surrogate", instead, mean_interval(surrogate[:, 1] - surrogate[:, 0])))

    statement = "Clustering finds what a probe with true classes finds (ratio of accuracies)."
    spec = ClaimSpec("near-probe", source, statement, 1.0, AtLeast(PROBE_SHARE))
    rows.append(spec.judge(mean_interval(clp[:, -1] / probe)))
    rows.append(spec.control("surrogate", "The surrogate instead.", mean_interval(surrogate[:, 0] / probe)))

    spec = ClaimSpec("fitted", source, "The network predicts the super-classes.", 1.0, AtLeast(COARSE_ACCURACY))
    rows.append(spec.judge(mean_interval(accuracy[:, -1])))
    rows.append(spec.control("untrained", "Before training.", mean_interval(accuracy[:, 0])))
    return Ledger(rows)


def minutes(history: "xr.Dataset") -> Any:
    """Minutes of training (coarse and ordinary) and scoring of every seed; compilation is not counted."""
    training = history["curve_seconds"].values.sum(axis=(0, 2))
    return (training + history["score_seconds"].values.sum(axis=1)) / 60


def table(history: "xr.Dataset") -> str:
    """What was run, and every level with its controls: mean over seeds and 95 % interval."""
    facts = history.attrs
    surrogate, first, last = history["surrogate"].values[:, -1, 0], {"checkpoint": 0}, {"checkpoint": -1}
    num_seeds = history.sizes["seed"]
    lines = [
        f"{'data':<51}{facts['dataset']} ({facts['copy']})",
        f"{'images':<51}{facts['num_train']} train, {facts['num_test']} test",
        f"{'labels':<51}{facts['labels']}, {facts['num_coarse']} of {history.sizes['fine']} classes",
        f"{'network, epochs':<51}{facts['network']}, {history.sizes['epoch']}; augmentation {facts['augment']}",
        f"{'hardware':<51}{facts['hardware']}",
        f"{'minutes a seed, both trainings and scores':<51}{shown(minutes(history), digits=1)}",
    ]
    levels = {
        "coarse accuracy": history["test_accuracy"].isel(last),
        "cluster and probe, k-means": history["clp"].isel(last),
        "cluster and probe, t-SNE + k-means": history["clp_tsne"].isel(last),
        "ordinary training on the original classes": history["ordinary_accuracy"],
        "probe with true classes": history["fine_probe"].isel(last),
        "ceiling: the cluster probe's coarse accuracy": history["clp_ceiling"].isel(last),
        "control: untrained network, cluster and probe": history["clp"].isel(first),
        "control: untrained network, true classes": history["fine_probe"].isel(first),
        "control: raw pixels (PCA), cluster and probe": history["raw_clp"],
        "control: raw pixels (PCA), true classes": history["raw_fine_probe"],
        "control: classes shuffled within super-classes": history["shuffled"].isel(last),
        "control: chance": history["clp_chance"].isel(last),
        "NC1 of the super-classes": history["nc1"].isel(last),
        "fine structure q": history["ratio"].isel(last),
    }
    rows = {name: values.values for name, values in levels.items()}
    rows["control: surrogate without sub-clusters"] = surrogate
    lines += [f"{name:<51}{shown(values)}" for name, values in rows.items()]
    if num_seeds == 1:
        lines.append("One seed: there is no interval over seeds, so no claim can be decided. Use --num-seeds 3.")
    if (history[["clp_converged", "fine_probe_converged"]].isel(last).to_array() == 0).any():
        lines.append("A probe ended at its largest number of iterations.")
    return "\n".join(lines)
