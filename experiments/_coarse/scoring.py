"""Scores of one training run of the MLP."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nctheory.vision import CoarseData


def score_run(
    data: "CoarseData", features: tuple[Any, Any], arm: str, seed: int, tsne_iterations: dict[str, int | None]
) -> dict[str, Any]:
    """Score the (train, test) features of one run at every record; the replica arm at both ends only."""
    from nctheory import vision

    ends = (features[0][[0, -1]], features[1][[0, -1]])
    if arm == "replica":
        return {"clp": vision.scores_along_training(data, ends, seed=seed)["clp"]}
    scores = vision.scores_along_training(data, features, seed=seed)
    scores |= _scores_at_ends(data, ends, seed, arm, tsne_iterations["scores"])
    if tsne_iterations["embedding"] is not None:
        scores["embedding"] = vision.embeddings(ends[1], num_iterations=tsne_iterations["embedding"])
    return scores


def _scores_at_ends(data: "CoarseData", ends, seed: int, arm: str, tsne_iterations: int | None) -> dict[str, Any]:
    """Slow scores at the last record; at the first one, which all arms share, in "plain" and without surrogates."""
    import numpy as np

    from nctheory import vision

    tsne_iterations = None if arm == "standard_init" else tsne_iterations
    first, last = ((ends[0][i : i + 1], ends[1][i : i + 1]) for i in (0, 1))
    final = vision.scores_of_controls(data, last, seed=seed, tsne_iterations=tsne_iterations)
    start = {name: np.full_like(values, np.nan) for name, values in final.items()}
    if arm == "plain":
        found = vision.scores_of_controls(data, first, seed=seed, num_surrogates=0, tsne_iterations=tsne_iterations)
        start |= {name: values for name, values in found.items() if values.size}
    return {name: np.concatenate([start[name], values]) for name, values in final.items()}
