"""Training objectives, each written once with its 1/2 and its 1/N.

A regularised objective is a data term plus `l2_penalty`. Papers differ in these factors; code that quotes a paper
converts to the forms here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num

from nctheory import _checks
from nctheory._errors import ArgumentError
from nctheory._types import AnyArray


def logistic(outputs: Float[AnyArray, " N"], signs: Num[AnyArray, " N"]) -> Float[Array, ""]:
    """Mean logistic loss (1/N) sum_i log(1 + exp(-y_i f_i)).

    Exact in relative terms for margins of either sign: about exp(-m) at a large margin m, about |m| at a large
    negative one, without overflow; the gradient is -y_i sigmoid(-y_i f_i) / N. At f = 0 it is log 2.

    Args:
        outputs: f, real network outputs, dimensionless.
        signs: y, labels in {-1, +1}, of any numeric dtype.

    Returns:
        Loss in nats a sample, >= 0; smaller is better.

    Raises:
        ValueError: if shapes differ, there is no sample, or `signs` holds anything but -1 and +1.
    """
    _check_signs("signs", signs, outputs)
    outputs = jnp.asarray(outputs)
    return jnp.mean(_softplus(-jnp.asarray(signs).astype(outputs.dtype) * outputs))


@jax.custom_jvp
def _softplus(x: Float[Array, " N"]) -> Float[Array, " N"]:
    return jax.nn.softplus(x)


# The derivative that JAX finds by itself computes the value once more.
_softplus.defjvps(lambda tangent, value, x: tangent * jax.nn.sigmoid(x))


def cross_entropy(logits: Float[AnyArray, "N K"], labels: Integer[AnyArray, " N"]) -> Float[Array, ""]:
    """Mean softmax cross-entropy -(1/N) sum_i log softmax(f_i)[y_i].

    Computed as log(1 + sum_{k != y} exp(f_k - f_y)), which keeps its relative accuracy when the loss is tiny, where
    logsumexp(f) - f_y rounds to zero. All logits equal: log K. K = 2 equals `logistic` of the logit difference.

    Args:
        logits: f, one row a sample, dimensionless.
        labels: class of each sample, 0..K-1. Under `jit` an out-of-range label cannot be seen and gives NaN.

    Returns:
        Loss in nats a sample, >= 0; smaller is better.

    Raises:
        ValueError: if there is no sample, K < 2, or labels are not integers in 0..K-1.
    """
    _check_logits("logits", logits, labels)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels).astype(jnp.int32)
    is_label = labels[:, None] == jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :]
    # Sums over a mask instead of gathers: the transpose of a gather is a scatter, slow on some devices.
    own = jnp.sum(jnp.where(is_label, logits, 0), axis=1, keepdims=True)
    rivals = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits - own), axis=1)
    return jnp.mean(jnp.where(jnp.any(is_label, axis=1), jax.nn.softplus(rivals), jnp.nan))


def mse(outputs: Float[AnyArray, "N K"], targets: Num[AnyArray, "N K"]) -> Float[Array, ""]:
    """Half the mean squared error |f - y|_F^2 / (2 N): summed over outputs, averaged over samples.

    Args:
        outputs: f, one row a sample.
        targets: y, in the unit of the outputs; integer targets (one-hot) are converted.

    Returns:
        Loss in squared output units, >= 0; smaller is better.

    Raises:
        ValueError: if shapes differ or there is no sample.
    """
    _checks.shape("outputs", outputs, ("N", "K"))
    _checks.shape("targets", targets, np.shape(outputs))
    _check_some_samples("outputs", outputs)
    outputs = jnp.asarray(outputs)
    residual = outputs - jnp.asarray(targets).astype(outputs.dtype)
    return jnp.sum(residual**2) / (2 * outputs.shape[0])


def l2_penalty(params: Any, weight_decay: float | Float[AnyArray, ""]) -> Float[Array, ""]:
    """Squared-norm penalty (weight_decay / 2) * (sum of squares of all entries of all leaves).

    Its gradient is weight_decay * params, so plain gradient descent on it multiplies the parameters by
    1 - learning_rate * weight_decay a step.

    Args:
        params: pytree whose leaves are floating-point arrays; an empty pytree costs 0.
        weight_decay: factor >= 0, in loss units per squared parameter unit.

    Returns:
        Penalty in loss units, >= 0, in the widest dtype among the leaves.

    Raises:
        ValueError: if `weight_decay` is negative or not finite, or a leaf is not floating point.
    """
    _checks.real("weight_decay", weight_decay, minimum=0.0)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ArgumentError(
                f"Argument `params` must hold floating-point leaves, but has one of dtype {leaf.dtype}."
            )
    dtype = np.result_type(*(leaf.dtype for leaf in leaves)) if leaves else jnp.result_type(float)
    total = jnp.zeros((), dtype)
    for leaf in leaves:
        total = total + jnp.sum(leaf.astype(dtype) ** 2)
    return jnp.asarray(weight_decay).astype(dtype) * (total / 2)


def accuracy(outputs: Float[AnyArray, " N"] | Float[AnyArray, "N K"], labels: Num[AnyArray, " N"]) -> Float[Array, ""]:
    """Fraction of samples classified as labelled.

    Two-axis outputs: argmax against labels 0..K-1 (the first of equal logits wins). One-axis outputs: sign against
    labels in {-1, +1}; an output of exactly 0 decides nothing and counts as wrong.

    Args:
        outputs: logits (N, K) or one real output a sample (N,).
        labels: integer classes for logits, signs for one-axis outputs.

    Returns:
        Accuracy in [0, 1]; larger is better. NaN if any output is NaN, because argmax of NaN means nothing.

    Raises:
        ValueError: for shapes or labels that fit neither form.
    """
    if np.ndim(outputs) == 1:
        _check_signs("labels", labels, outputs)
        outputs = jnp.asarray(outputs)
        hits = jnp.sign(outputs) == jnp.asarray(labels).astype(outputs.dtype)
    else:
        _check_logits("outputs", outputs, labels)
        outputs = jnp.asarray(outputs)
        hits = jnp.argmax(outputs, axis=1).astype(jnp.int32) == jnp.asarray(labels).astype(jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(outputs)), jnp.nan, jnp.mean(hits.astype(outputs.dtype)))


def _check_some_samples(name: str, value: Any) -> None:
    if np.shape(value)[0] == 0:
        raise ArgumentError(f"Argument `{name}` must hold at least one sample, but has shape {np.shape(value)}.")


def _check_signs(name: str, signs: Any, outputs: Any) -> None:
    _checks.shape("outputs", outputs, ("N",))
    _checks.shape(name, signs, np.shape(outputs))
    _check_some_samples("outputs", outputs)
    if _checks.is_concrete(signs):
        values = np.unique(np.asarray(signs)).astype(np.float64)
        if not np.isin(values, (-1.0, 1.0)).all():
            raise ArgumentError(f"Argument `{name}` must hold only -1 and +1, but holds {values[:5].tolist()}.")


def _check_logits(name: str, logits: Any, labels: Any) -> None:
    _checks.shape(name, logits, ("N", "K"))
    _check_some_samples(name, logits)
    if np.shape(logits)[1] < 2:
        raise ArgumentError(f"Argument `{name}` must have at least 2 columns, but has shape {np.shape(logits)}.")
    _checks.labels("labels", labels, num_classes=np.shape(logits)[1], length=np.shape(logits)[0])
