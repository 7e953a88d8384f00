"""Literal float64 NumPy versions of the metrics: loops and d x d matrices, written from the formulas alone."""

import numpy as np


def collapse(features, labels, num_classes, weight=None, bias=None):
    h, y = np.asarray(features, np.float64), np.asarray(labels)
    mu = np.stack([h[y == c].mean(axis=0) for c in range(num_classes)])
    g = mu - mu.mean(axis=0)
    z = h - mu[y]
    sigma_w = z.T @ z / len(h)
    sigma_b = g.T @ g / num_classes
    pairs = [(a, b) for a in range(num_classes) for b in range(num_classes) if a != b]
    norms = np.array([np.linalg.norm(v) for v in g])
    var = np.array([np.mean(np.sum(z[y == c] ** 2, axis=1)) for c in range(num_classes)])
    gram = g @ g.T
    etf = (np.eye(num_classes) - 1 / num_classes) / np.sqrt(num_classes - 1)
    rank = min(num_classes - 1, h.shape[1])
    out = {
        "nc1": np.trace(sigma_w @ pinv_of_rank(sigma_b, rank)) / num_classes,
        "within_between_ratio": np.trace(sigma_w) / np.trace(sigma_b),
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangular": np.mean([abs(g[a] @ g[b] / norms[a] / norms[b] + 1 / (num_classes - 1)) for a, b in pairs]),
        "nc2_etf_distance": np.linalg.norm(gram / np.linalg.norm(gram) - etf),
        "nc3_duality": np.nan,
        "nc4_ncc_mismatch": np.nan,
        "cdnv": np.mean([(var[a] + var[b]) / 2 / np.sum((mu[a] - mu[b]) ** 2) for a, b in pairs]),
    }
    if weight is not None:
        w = np.asarray(weight, np.float64)
        b = np.zeros(num_classes) if bias is None else np.asarray(bias, np.float64)
        out["nc3_duality"] = np.linalg.norm(w / np.linalg.norm(w) - g / np.linalg.norm(g))
        predicted = np.argmax(h @ w.T + b, axis=1)
        nearest = np.array([np.argmin([np.sum((x - m) ** 2) for m in mu]) for x in h])
        out["nc4_ncc_mismatch"] = np.mean(predicted != nearest)
    return out


def directions(features, labels, num_classes, weight=None):
    """Energy of the directions of the centred class means, its excess over a simplex ETF's, and cosines with rows."""
    mu = np.stack([np.asarray(features, np.float64)[labels == c].mean(axis=0) for c in range(num_classes)])
    g = mu - mu.mean(axis=0)
    units = g / np.linalg.norm(g, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(num_classes) for j in range(i)]
    energy = -np.mean([np.log(np.linalg.norm(units[i] - units[j])) for i, j in pairs])
    cosines = [np.nan]
    if weight is not None:
        cosines = [row @ u / np.linalg.norm(row) for row, u in zip(np.asarray(weight, np.float64), units, strict=True)]
    return {
        "hyperspherical_energy": energy,
        "hyperspherical_excess": energy + np.log(2 * num_classes / (num_classes - 1)) / 2,
        "class_alignment_mean": np.mean(cosines),
        "class_alignment_min": np.min(cosines),
    }


def pinv_of_rank(matrix, rank):
    """Pseudo-inverse of a symmetric matrix from its `rank` largest eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    return (vectors / values) @ vectors.T


def fine(features, labels, fine_labels):
    h, y, f = np.asarray(features, np.float64), np.asarray(labels), np.asarray(fine_labels)
    k = f.max() + 1
    mu = [h[f == c].mean(axis=0) for c in range(k)]
    label = [y[f == c][0] for c in range(k)]
    distances = np.array([[np.sum((a - b) ** 2) for b in mu] for a in mu])
    within = np.array([np.trace(np.atleast_2d(np.cov(h[f == c].T, bias=True))) for c in range(k)])
    pairs = [(a, b) for a in range(k) for b in range(a)]
    mean = lambda v: np.mean(v) if v else np.nan  # noqa: E731
    same = mean([distances[p] for p in pairs if label[p[0]] == label[p[1]]])
    different = mean([distances[p] for p in pairs if label[p[0]] != label[p[1]]])
    return {
        "class_distances": distances,
        "within_variances": within,
        "same_label_distance": same,
        "different_label_distance": different,
        "within_variance": within.mean(),
        "ratio": same / different,
        "separation": same / within.mean(),
        "coarse_ratio": collapse(h, y, y.max() + 1)["within_between_ratio"],
    }
