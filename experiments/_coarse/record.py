"""What the coarse-label experiment stores: scores of every run, and the labelled data set made of them."""

from typing import TYPE_CHECKING, Any

from _coarse.claims import ARMS

if TYPE_CHECKING:
    import xarray as xr

    from nctheory.vision import CoarseData

ENDS = ("initial", "final")
CONTROL_SCORES = ("clp_tsne", "fine_probe", "surrogate", "surrogate_explained_variance")
_ALONG = ("arm", "seed", "step")
_UNIT = {"units": "dimensionless"}


def score_names(arm: str, *, first: bool) -> list[str]:
    """Names of the scores of one (arm, seed); the first seed also has the embedding for the figure."""
    from nctheory import vision

    if arm == "replica":
        return ["clp"]
    return [*vision.SCORES, *CONTROL_SCORES, *(["embedding"] if first else [])]


def collect(
    data: "CoarseData",
    sweeps: dict[str, Any],
    scores: dict[str, dict[str, Any]],
    attributes: dict[str, Any],
    *,
    tsne_iterations: int,
) -> "xr.Dataset":
    """Put everything that claims and figures need into one labelled data set.

    Args:
        data: the images under merged labels.
        sweeps: results of the sweeps "coarse" (arms, then the replica) and "ordinary".
        scores: scores by "arm/number of the seed".
        attributes: of the data set.
        tsne_iterations: gradient steps of t-SNE on the inputs.

    Returns:
        The record.
    """
    import numpy as np
    import xarray as xr

    from nctheory import vision

    on_inputs = vision.scores_of_inputs(data, tsne_iterations=tsne_iterations)
    variables: dict[str, Any] = {name: ((), value, _UNIT) for name, value in on_inputs.items()}
    variables |= _training(sweeps) | _scores(scores, len(sweeps["coarse"].seeds))
    variables["coarse_label"] = ("fine", np.asarray(data.label_map.table))
    variables["sample_class"] = ("sample", data.fine[1])
    coordinates = {
        "arm": list(ARMS),
        "seed": sweeps["coarse"].seeds.astype(np.int64),
        "step": np.asarray(sweeps["coarse"].history.steps[0, 0]).astype(np.int64),
        "end": list(ENDS),
        "fine": list(data.class_names),
        "other_fine": list(data.class_names),
    }
    return xr.Dataset(variables, coordinates, attributes)


def _training(sweeps: dict[str, Any]) -> dict[str, Any]:
    """Variables that training itself recorded, less those of the replica."""
    history, num_arms = sweeps["coarse"].history, len(ARMS)
    fine = history.train.fine
    squared = {"units": "squared feature units"}
    return {
        "loss": (_ALONG, history.train.loss[:num_arms], {"units": "nat"}),
        "train_accuracy": (_ALONG, history.train.accuracy[:num_arms], _UNIT),
        "test_accuracy": (_ALONG, history.fresh.accuracy[:num_arms], _UNIT),
        "coarse_ratio": (_ALONG, fine.coarse_ratio[:num_arms], _UNIT),
        "ratio": (_ALONG, fine.ratio[:num_arms], _UNIT),
        "separation": (_ALONG, fine.separation[:num_arms], _UNIT),
        "class_distances": ((*_ALONG, "fine", "other_fine"), fine.class_distances[:num_arms], squared),
        "within_variances": ((*_ALONG, "fine"), fine.within_variances[:num_arms], squared),
        "ordinary_accuracy": ("seed", sweeps["ordinary"].history.fresh.accuracy[0, :, -1], _UNIT),
        "finite": (("arm", "seed"), sweeps["coarse"].finite[:num_arms]),
    }


def _scores(scores: dict[str, dict[str, Any]], num_seeds: int) -> dict[str, Any]:
    """Variables made of the stored scores."""
    import numpy as np

    from nctheory import vision

    def stacked(name: str):
        return np.stack([[scores[f"{arm}/{j}"][name] for j in range(num_seeds)] for arm in ARMS])

    ends = ("arm", "seed", "end")
    variables: dict[str, Any] = {name: (_ALONG, stacked(name), _UNIT) for name in vision.SCORES}
    for name in CONTROL_SCORES:
        values = stacked(name)
        variables[name] = (ends if values.ndim == 3 else (*ends, "draw"), values, _UNIT)
    replica = np.stack([scores[f"replica/{j}"]["clp"] for j in range(num_seeds)])
    embedding = np.stack([scores[f"{arm}/0"]["embedding"] for arm in ARMS])
    variables["replica_clp"] = (("seed", "end"), replica, _UNIT)
    variables["embedding"] = (("arm", "end", "sample", "plane"), embedding, _UNIT)
    return variables
