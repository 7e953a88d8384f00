"""Claims of the comparison of merges with criteria and controls, and the printed table, from the record alone."""

from typing import TYPE_CHECKING, Any

from _shared.ranks import permuted_correlation, rank_correlation
from _shared.text import shown

from _merges.pairings import SCHEMES
from nctheory.claims import AtLeast, AtMost, ClaimSpec, Ledger, mean_interval

if TYPE_CHECKING:
    import xarray as xr

FITTED, SURROGATE_MARGIN, TRAINING_MARGIN = 0.80, 0.10, 0.05
RECOVERY_CORRELATION, GROWTH_CORRELATION = 0.40, 0.20
NUM_PERMUTATIONS = 20
SOURCE = "derived here; question of Yang, Steinhardt, Hu 2023"


def growth(history: "xr.Dataset") -> "xr.DataArray":
    """Separation of every merged pair after training over that before."""
    return history["separation"].sel(end="final") / history["separation"].sel(end="initial")


def judge(history: "xr.Dataset") -> Ledger:
    """Judge the claims, whose criteria stand here and were fixed on seeds from 1000 on.

    Differences are paired by seed; the intervals are over seeds, for one set of images and one list of merges. Every
    control puts a comparison without the effect before the same criterion.
    """
    from nctheory.vision.merges import scheme_scores

    accuracy = history["test_accuracy"]
    statement = "Every network predicts its super-classes on test images (worst merge)."
    spec = ClaimSpec("fitted", SOURCE, statement, 1.0, AtLeast(FITTED))
    rows = [
        spec.judge(mean_interval(accuracy.sel(end="final").values.min(axis=0))),
        spec.control("untrained", "Before training.", mean_interval(accuracy.sel(end="initial").values.max(axis=0))),
    ]
    beyond = history["clp"].sel(end="final") - history["surrogate"].isel(draw=0)
    null = history["surrogate"].isel(draw=1) - history["surrogate"].isel(draw=0)
    for scheme in _present(history):
        statement = f"Merge {scheme}: trained features beat the surrogate without sub-clusters."
        spec = ClaimSpec(f"survives/{scheme}", SOURCE, statement, float("nan"), AtLeast(SURROGATE_MARGIN))
        rows.append(spec.judge(mean_interval(scheme_scores(beyond, scheme))))
        instead = "A second surrogate in place of them."
        rows.append(spec.control("surrogate", instead, mean_interval(scheme_scores(null, scheme))))
    return Ledger([*rows, *_training(history), *_similarity(history)])


def _present(history: "xr.Dataset") -> list[str]:
    return [scheme for scheme in SCHEMES if scheme in history["scheme"].values]


def _training(history: "xr.Dataset") -> list[Any]:
    """What training does to the recovery of random pairs: an MLP from a small start erodes it, convolutions raise it.

    The control of the first needs the spread of the mean of half the seeds to be below the margin: eight seeds do.
    """
    from nctheory.vision.merges import scheme_scores

    first, last = (scheme_scores(history["clp"].sel(end=end), "random") for end in ("initial", "final"))
    nowhere = float("nan")
    if history.attrs["network"] == "mlp":
        statement = "Training erodes what clusters recover of random pairs (trained minus untrained)."
        spec = ClaimSpec("eroded", SOURCE, statement, nowhere, AtMost(-TRAINING_MARGIN))
        half = len(first) // 2
        instead = "Untrained networks of half the seeds minus those of the other half."
        control = spec.control("untrained", instead, mean_interval(first[half : 2 * half] - first[:half]))
    else:
        statement = "Training raises what clusters recover of random pairs (trained minus untrained)."
        spec = ClaimSpec("created", SOURCE, statement, nowhere, AtLeast(TRAINING_MARGIN))
        null = scheme_scores(history["surrogate"].isel(draw=0), "random")
        control = spec.control("surrogate", "The surrogate minus untrained instead.", mean_interval(null - first))
    return [spec.judge(mean_interval(last - first)), control]


def _similarity(history: "xr.Dataset") -> list[Any]:
    """Rank correlations over pairs of classes with their distance on the images.

    The first holds of untrained networks and of pixels too (see the table); what training adds is the second.
    """
    from nctheory.vision.merges import pair_points

    points = pair_points(history, history["recovery"].sel(end="final"))
    null = pair_points(history, history["surrogate_recovery"])
    statement = "The further apart two merged classes lie on the images, the better they come back (Spearman)."
    spec = ClaimSpec("unlike-pairs-return", SOURCE, statement, float("nan"), AtLeast(RECOVERY_CORRELATION))
    permuted = "Recoveries dealt to the pairs at random."
    deals = permuted_correlation(points.distance, points.values, num_permutations=NUM_PERMUTATIONS)
    rows = [
        spec.judge(mean_interval(rank_correlation(points.distance, points.values))),
        spec.control("permuted", permuted, mean_interval(deals)),
        spec.control("surrogate", "Surrogates instead.", mean_interval(rank_correlation(null.distance, null.values))),
    ]
    points = pair_points(history, growth(history))
    statement = "Training separates unlike pairs more than like ones: growth of separation with distance (Spearman)."
    spec = ClaimSpec("training-sorts-pairs", SOURCE, statement, float("nan"), AtLeast(GROWTH_CORRELATION))
    rows.append(spec.judge(mean_interval(rank_correlation(points.distance, points.values))))
    deals = permuted_correlation(points.distance, points.values, num_permutations=NUM_PERMUTATIONS)
    rows.append(spec.control("permuted", "Growths dealt to the pairs at random.", mean_interval(deals)))
    return rows


def table(history: "xr.Dataset") -> str:
    """Every level by scheme, and every rank correlation, as aligned text."""
    from nctheory.vision.merges import points_by_scheme, scheme_scores

    clp, lines = history["clp"], []
    scores = {
        "trained": clp.sel(end="final"),
        "untrained": clp.sel(end="initial"),
        "trained minus untrained": clp.sel(end="final") - clp.sel(end="initial"),
        "surrogate without sub-clusters": history["surrogate"].isel(draw=0),
        "chance": history["clp_chance"].sel(end="final"),
        "ceiling, right super-class": history["clp_ceiling"].sel(end="final"),
        "probe with true classes": history["fine_probe"],
        "network, super-classes": history["test_accuracy"].sel(end="final"),
    }
    for scheme in _present(history):
        mine = history["scheme"].values == scheme
        points = points_by_scheme(history, history["recovery"].sel(end="final"), scheme)
        lines.append(f"{scheme}: {int(mine.sum())} merges")
        lines += [f"  {name:<49}{shown(scheme_scores(values, scheme))}" for name, values in scores.items()]
        lines.append(f"  {'raw pixels':<49}{shown(history['raw_clp'].values[mine].mean())}")
        lines.append(f"  {'distance of merged classes on the images':<49}{shown(points.distance.mean())}")
        lines.append(f"  {'error of a probe between them on the images':<49}{shown(points.probe_error.mean())}")
    if "semantic" in _present(history):
        both = [scheme_scores(clp.sel(end="final"), scheme) for scheme in ("semantic", "random")]
        lines.append(f"{'semantic minus random, trained':<51}{shown(both[0] - both[1])}")
    return "\n".join([*lines, *_correlations(history)])


def _correlations(history: "xr.Dataset") -> list[str]:
    from nctheory.vision.merges import pair_points

    recovery = history["recovery"]
    scores = {
        "recovery, trained": recovery.sel(end="final"),
        "recovery, untrained": recovery.sel(end="initial"),
        "recovery, raw pixels": history["raw_recovery"],
        "recovery, surrogate": history["surrogate_recovery"],
        "recovery, probe with true classes": history["probe_recovery"],
        "recovery, trained minus untrained": recovery.sel(end="final") - recovery.sel(end="initial"),
        "separation, trained over untrained": growth(history),
    }
    lines = ["rank correlation over pairs of classes with"]
    for measure, name, sign in (("distance", "distance", 1), ("probe_error", "minus the error of the probe", -1)):
        lines.append(f"  {name} on the images, of")
        for label, values in scores.items():
            points = pair_points(history, values)
            lines.append(f"    {label:<47}{shown(rank_correlation(sign * getattr(points, measure), points.values))}")
    return lines
