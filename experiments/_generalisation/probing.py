"""Probes that run on the host, in processes of their own, on the features of one run at several records."""

from typing import Any

import numpy as np

PROBES = ("logistic", "knn", "nearest_center")


def make_features(run: Any):
    """Build the function from (parameters at several records, seed) to the arguments of `score`.

    Args:
        run: `simulator.TrainConfig` of the runs; they may differ in numbers, which do not change features.

    Returns:
        The function.
    """
    import jax

    from nctheory import simulator

    @jax.jit
    def features(params: Any, inputs: Any) -> Any:
        def at_record(mine: Any) -> Any:
            return simulator.trained_model(run, jax.random.key(0), mine).features(inputs)

        return jax.lax.map(at_record, params)

    def of_run(params: Any, seed: int) -> tuple[Any, ...]:
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), simulator.DATA_STREAM)
        train, test = run.data.draw(key)
        made = (features(params, train.inputs), train.fine_labels, features(params, test.inputs), test.fine_labels)
        return tuple(np.asarray(each) for each in made)

    return of_run


def score(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of every probe at every record of one run; NaN where features are not finite or constant.

    Args:
        train: features of the train images at each record (record, image, feature).
        train_labels: their original classes.
        test: the same of the held-out images.
        test_labels: their original classes.

    Returns:
        "accuracy", probe by record.
    """
    from nctheory.metrics.probes import probe_accuracies

    accuracy = np.full((len(PROBES), len(train)), np.nan)
    for at, (ours, theirs) in enumerate(zip(train, test, strict=True)):
        if np.isfinite(ours).all() and np.isfinite(theirs).all():
            accuracy[:, at] = list(probe_accuracies(ours, train_labels, theirs, test_labels, probes=PROBES).values())
    return {"accuracy": accuracy}
