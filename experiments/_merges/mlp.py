"""The MLP under every merge: all seeds of all merges in one sweep, since merges differ in labels alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _shared.pool import score_all

from _merges.scoring import Labelled, score, score_names

if TYPE_CHECKING:
    from collections.abc import Callable

    import jax
    import numpy as np

    from _merges.pairings import Merge
    from nctheory.vision import CoarseData

ENDS = ("initial", "final")


class Trained(NamedTuple):
    """What is stored of a run, at both ends of training; the rest is never compiled.

    Attributes:
        train_accuracy: on super-classes.
        test_accuracy: on super-classes.
        params: parameters.
        finite: whether the objective stayed finite.
    """

    train_accuracy: Any
    test_accuracy: Any
    params: Any
    finite: Any


def train(config: Any, key: "jax.Array") -> Trained:
    """Train one network."""
    from nctheory import simulator

    history = simulator.train(config, key)
    assert history.fresh is not None
    return Trained(history.train.accuracy, history.fresh.accuracy, history.params, history.finite)


def train_config(config: Any, data: "CoarseData", labels: Labelled) -> Any:
    """Training run under one merge, as in the arms of experiments/coarse_labels.py."""
    from nctheory import simulator

    sets = [simulator.Samples(*part) for part in zip(data.inputs, labels.coarse, labels.fine, strict=True)]
    mapping = labels.label_map
    return simulator.TrainConfig(
        data=simulator.FixedData(*sets, num_labels=mapping.num_coarse, num_fine=mapping.num_fine),
        model=simulator.MLPSpec(widths=config.widths, activation="relu", init_scale=config.init_scale),
        loss="cross_entropy",
        optimizer="momentum",
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        schedule="cosine",
        num_steps=config.num_steps,
        num_records=2,
        keep_params=True,
    )


def make_features(setting: Any, inputs: "tuple[np.ndarray, np.ndarray]"):
    """Build the function from (all kept parameters, merge, seed number) to (train, test) features at both ends."""
    import jax
    import numpy as np

    from nctheory import simulator

    def features(parameters, part):
        return simulator.trained_model(setting, jax.random.key(0), parameters).features(part)

    apply = jax.jit(jax.vmap(features, in_axes=(0, None)))

    def of_run(params, merge: int, column: int):
        mine = jax.tree.map(lambda leaf: leaf[merge, column], params)
        train, test = (np.asarray(apply(mine, part)) for part in inputs)
        return train, test

    return of_run


def run_all(
    config: Any, settings: list[Any], data: "CoarseData", merges: "list[Merge]", parts: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train and score every (merge, seed); what finished is taken up from `parts`.

    Args:
        config: the experiment's.
        settings: training run of every merge.
        data: the images.
        merges: the merges.
        parts: folder of finished parts.

    Returns:
        Scores of every (merge, seed), seed fastest, with a leading axis of ends; and times in seconds
        with what the manifest says of the sweep.
    """
    from _bench import asked_size, log_of

    from nctheory import simulator

    result = simulator.sweep(
        train,
        settings,
        config.seeds,
        chunk_size=asked_size(config.chunk_size, parts / "sweep"),
        checkpoint=parts / "sweep",
        description="train",
    )
    features_of = make_features(settings[0], data.inputs)
    found = _score_all(config, lambda m, j: features_of(result.history.params, m, j), data, merges, parts / "scores")
    history, rows = result.history, []
    for m in range(len(merges)):
        for j in range(len(config.seeds)):
            row = join(found[m, j, 0], found[m, j, 1])
            row |= {"train_accuracy": history.train_accuracy[m, j], "test_accuracy": history.test_accuracy[m, j]}
            rows.append(row)
    told = {"compile_seconds": result.compile_seconds, "run_seconds": result.run_seconds}
    return rows, {**told, "sweeps": {"train": log_of(result)}}


def _score_all(
    config: Any, features_of: "Callable[[int, int], Any]", data: "CoarseData", merges: "list[Merge]", folder: Path
) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Score every network at both ends, by (merge, seed, end); finished ones are kept in `folder`."""
    from _shared.store import cached

    folder.mkdir(exist_ok=True)
    jobs = [(m, j, end) for j in range(len(config.seeds)) for m in range(len(merges)) for end in range(2)]

    def unit(elsewhere: "Callable[..., dict[str, Any]]", m: int, j: int, end: int) -> dict[str, Any]:
        seed, labels = config.seeds[j], Labelled(data.fine, merges[m].label_map)

        def compute():
            features = tuple(part[end] for part in features_of(m, j))
            return elsewhere(features, labels, seed, trained=end == 1, merge=m)

        path = folder / f"{merges[m].name}-{seed}-{ENDS[end]}.npz"
        return cached(path, score_names(trained=end == 1), compute)

    done = score_all(jobs, unit, score, alone=config.smoke)
    return dict(zip(jobs, done, strict=True))


def join(first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Scores of both ends: stacked where both have them."""
    import numpy as np

    return {name: np.stack([first[name], value]) if name in first else value for name, value in last.items()}
