"""Claims of the coarse-label test with their criteria and controls, judged from the stored record alone."""

from typing import TYPE_CHECKING, Any

from _shared.text import shown

from nctheory.claims import AtLeast, AtMost, ClaimSpec, Ledger, Within, mean_interval, range_interval

if TYPE_CHECKING:
    import xarray as xr

ARMS = ("plain", "decay", "standard_init")
SURVIVAL_MARGIN, EROSION_MARGIN, DECAY_MARGIN, MEMORY_MARGIN = 0.10, 0.03, 0.05, 0.03


def judge(history: "xr.Dataset") -> Ledger:
    """Judge the claims, whose criteria stand here and do not depend on the data.

    Differences are paired by seed. Every control puts a comparison without the effect before the same
    criterion.
    """
    clp, at = history["clp"], {"plain": 0, "decay": 1, "standard_init": 2}

    def change(arm: str):
        return (clp[at[arm], :, -1] - clp[at[arm], :, 0]).values

    source = "derived here; question of Yang, Steinhardt, Hu 2023"
    accuracy = history["train_accuracy"]
    converged = ClaimSpec("converged", source, "Every arm fits its labels (worst arm).", 1.0, AtLeast(0.99))
    rows = [
        converged.judge(range_interval(accuracy[:, :, -1].min("arm").values, which="min")),
        converged.control("untrained", "Before training.", range_interval(accuracy[0, :, 0].values, which="min")),
    ]
    null = history["surrogate"][:, :, -1, :]
    for arm in ("plain", "decay"):
        statement = f"Arm {arm}: trained features beat the surrogate without sub-clusters."
        spec = ClaimSpec(f"survives/{arm}", source, statement, float("nan"), AtLeast(SURVIVAL_MARGIN))
        first, second = (null[at[arm], :, draw].values for draw in range(2))
        rows.append(spec.judge(mean_interval(clp[at[arm], :, -1].values - first)))
        rows.append(spec.control("surrogate", "A second surrogate in place of them.", mean_interval(second - first)))

    replica = history["replica_clp"]
    spec = ClaimSpec(
        "eroded", source, "Training from a small start erodes the structure.", float("nan"), AtMost(-EROSION_MARGIN)
    )
    rows.append(spec.judge(mean_interval(change("plain"))))
    untrained = replica[:, 0].values - clp[0, :, 0].values
    rows.append(spec.control("untrained", "Other untrained networks instead.", mean_interval(untrained)))

    statement = "Weight decay erodes it further."
    spec = ClaimSpec("eroded-by-decay", source, statement, float("nan"), AtMost(-DECAY_MARGIN))
    rows.append(spec.judge(mean_interval((clp[1, :, -1] - clp[0, :, -1]).values)))
    other = replica[:, -1].values - clp[0, :, -1].values
    rows.append(spec.control("no-decay", "Other seeds without decay instead.", mean_interval(other)))

    statement = "From a standard start without decay it keeps its initial level."
    spec = ClaimSpec("memory", source, statement, 0.0, Within(-MEMORY_MARGIN, MEMORY_MARGIN))
    rows.append(spec.judge(mean_interval(change("standard_init"))))
    rows.append(spec.control("small-start", "The arm plain instead.", mean_interval(change("plain"))))
    return Ledger(rows)


def controls_table(history: "xr.Dataset") -> str:
    """All reference levels as aligned text: accuracy on the test images, mean over seeds and its 95 % interval."""
    arms = {name: index for index, name in enumerate(ARMS)}
    first = history["clp"][0, :, 0].values
    rows: list[tuple[str, Any]] = [
        ("raw pixels, k-means", history["raw_clp"].values),
        ("raw pixels, t-SNE + k-means", history["raw_clp_tsne"].values),
        ("raw pixels, probe with true classes", history["raw_fine_probe"].values),
        ("ordinary training on the original classes", history["ordinary_accuracy"].values),
        ("untrained, k-means", first),
        ("untrained, t-SNE + k-means", history["clp_tsne"][0, :, 0].values),
        ("untrained, probe with true classes", history["fine_probe"][0, :, 0].values),
    ]
    for arm, index in arms.items():
        last = {"arm": index, "step": -1}
        rows += [
            (f"{arm}: k-means", history["clp"].isel(last).values),
            (f"{arm}: t-SNE + k-means", history["clp_tsne"][index, :, -1].values),
            (f"{arm}: probe with true classes", history["fine_probe"][index, :, -1].values),
            (f"{arm}: surrogate without sub-clusters", history["surrogate"][index, :, -1, 0].values),
            (f"{arm}: chance", history["clp_chance"].isel(last).values),
            (f"{arm}: ceiling, network's coarse accuracy", history["test_accuracy"].isel(last).values),
        ]
    return "\n".join(f"{name:<51}{shown(values)}" for name, values in rows)
