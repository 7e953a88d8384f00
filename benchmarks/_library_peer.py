"""The PyTorch library `neural_collapse` (github.com/rhubarbwu/neural-collapse) on the samples of `metrics_speed`.

It is compared where the user has installed it. Arguments go by name, because their order differs between its versions.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

BATCH = 1000
NOT_INSTALLED = "not installed"


def prepare(
    features: np.ndarray, labels: np.ndarray, weight: np.ndarray, num_classes: int
) -> tuple[Callable[[], list[float]] | None, str]:
    """The library's metrics of these samples, ready to run, and a note.

    Args:
        features: features (N, d).
        labels: labels (N,), in 0..K-1.
        weight: classifier (K, d).
        num_classes: number of classes K.

    Returns:
        The call, None if the library is not installed or has another interface; and which of the three it is.
    """
    if find_spec("torch") is None or find_spec("neural_collapse") is None:
        return None, NOT_INSTALLED
    import torch  # pyright: ignore[reportMissingImports]

    tensors = torch.from_numpy(features), torch.from_numpy(labels).long(), torch.from_numpy(weight)

    def call() -> list[float]:
        return measure(*tensors, num_classes)

    try:
        call()
    except (ImportError, AttributeError, TypeError, AssertionError) as error:
        return None, f"installed, but with another interface: {error!r}"
    return call, "installed"


def measure(features: Any, labels: Any, weight: Any, num_classes: int) -> list[float]:
    """NC1 by pseudo-inverse, CDNV, simplex error, self-duality and agreement with the nearest class centre.

    In three passes over batches, as the library's own example goes.
    """
    from neural_collapse import accumulate, measure  # pyright: ignore[reportMissingImports]

    size = num_classes, features.shape[1]
    batches = list(zip(features.split(BATCH), labels.split(BATCH), strict=True))
    totals = accumulate.MeanAccumulator(*size, "cpu")
    for x, y in batches:
        totals.accumulate(x, y)
    means, centre = totals.compute()
    spreads = accumulate.VarNormAccumulator(*size, "cpu", M=means)
    covariances = accumulate.CovarAccumulator(*size, "cpu", M=means)
    for x, y in batches:
        spreads.accumulate(x, y, means)
        covariances.accumulate(x, y, means)
    decisions = accumulate.DecAccumulator(*size, "cpu", M=means, W=weight)
    for x, y in batches:
        decisions.accumulate(x, y, M=means, W=weight)
    spread, _ = spreads.compute()
    nc1 = getattr(measure, "covariance_pinv", measure.covariance_ratio)
    return [
        float(nc1(M=means, V_intra=covariances.compute(), m_G=centre)),
        float(measure.variability_cdnv(M=means, V=spread)),
        float(measure.simplex_etf_error(M=means, m_G=centre)),
        float(measure.self_duality_error(W=weight, M=means, m_G=centre)),
        float(measure.clf_ncc_agreement(decisions)),
    ]
