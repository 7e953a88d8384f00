"""How alike two classes are, measured on their images alone: no network, no training, no merge."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

NUM_COMPONENTS = 50


def principal_components(rows: "tuple[np.ndarray, np.ndarray]") -> "tuple[np.ndarray, np.ndarray]":
    """Train and test images in the first principal directions of the train images, at most `NUM_COMPONENTS`."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    count = min(NUM_COMPONENTS, *rows[0].shape)
    with threadpool_limits(1):
        model = PCA(count, svd_solver="randomized", random_state=0).fit(rows[0])
        return model.transform(rows[0]), model.transform(rows[1])


def of_classes(components: "tuple[np.ndarray, np.ndarray]", fine: Any, num_fine: int) -> "dict[str, np.ndarray]":
    """Two measures for every pair of classes, as symmetric matrices with a diagonal of NaN.

    `input_distance`: squared distance of the two class means over the mean of the two within-class variances (traces of
    the covariances), on train images; large for unlike classes. `input_probe_error`: share of test images that a linear
    probe between the two, fitted on train images, gets wrong; large for like classes.

    Args:
        components: train and test images as principal components.
        fine: their classes.
        num_fine: number of classes F.

    Returns:
        Both matrices, dimensionless.
    """
    import numpy as np

    from nctheory import metrics

    train, test = components
    classes = [train[fine[0] == c] for c in range(num_fine)]
    means = np.stack([part.mean(axis=0) for part in classes])
    spread = np.array([part.var(axis=0).sum() for part in classes])
    squared = np.sum((means[:, None, :] - means[None, :, :]) ** 2, axis=2)
    distance = squared / (0.5 * (spread[:, None] + spread[None, :]))
    np.fill_diagonal(distance, np.nan)
    error = np.full((num_fine, num_fine), np.nan)
    for a in range(num_fine):
        for b in range(a + 1, num_fine):
            parts = [np.flatnonzero((labels == a) | (labels == b)) for labels in fine]
            if parts[1].size:
                arguments = (train[parts[0]], fine[0][parts[0]], test[parts[1]], fine[1][parts[1]])
                error[a, b] = error[b, a] = 1 - metrics.linear_probe_accuracy(*arguments)
    return {"input_distance": distance, "input_probe_error": error}
