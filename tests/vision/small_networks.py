"""One small network of every family, on images of odd and unequal sides, for the tests of networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nctheory.vision import networks

NUM_OUTPUTS = 3
# Name -> specification, image shape, and (name, shape of one sample's output) of every layer by hand.
FAMILIES = {
    "resnet": (
        networks.ResNetSpec(blocks=(2, 1), widths=(4, 6)),
        (7, 6, 2),
        {
            "stem": (7, 6, 4),
            "stage1.block1": (7, 6, 4),
            "stage1.block2": (7, 6, 4),
            "stage2.block1": (4, 3, 6),
            "features": (6,),
        },
    ),
    "vgg": (
        networks.VggSpec("11", width=2),
        (18, 17, 2),
        {
            "stage1.block1": (9, 9, 2),
            "stage2.block1": (5, 5, 4),
            "stage3.block1": (5, 5, 8),
            "stage3.block2": (3, 3, 8),
            "stage4.block1": (3, 3, 16),
            "stage4.block2": (2, 2, 16),
            "stage5.block1": (2, 2, 16),
            "stage5.block2": (1, 1, 16),
            "features": (16,),
        },
    ),
    "densenet": (
        networks.DenseNetSpec(depth=10, growth=3),
        (9, 8, 2),
        {
            "stem": (9, 8, 6),
            "stage1.block1": (9, 8, 9),
            "stage1.transition": (4, 4, 4),
            "stage2.block1": (4, 4, 7),
            "stage2.transition": (2, 2, 3),
            "stage3.block1": (2, 2, 6),
            "features": (6,),
        },
    ),
    "mlp": (
        networks.MlpSpec(widths=(7, 8, 5), batch_norm=True),
        (3, 2, 2),
        {"layer1": (7,), "layer2": (8,), "features": (5,)},
    ),
}


# Standard deviation or range of what a parameter or statistic is filled with.
_FILL = {
    "kernel": lambda draw, shape: draw.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5,
    "bias": lambda draw, shape: 0.2 * draw.standard_normal(shape),
    "mean": lambda draw, shape: 0.2 * draw.standard_normal(shape),
    "scale": lambda draw, shape: 1 + 0.2 * draw.standard_normal(shape),
    "var": lambda draw, shape: draw.uniform(0.5, 2, shape),
}


def build(family: str, **options) -> networks.ImageNetwork:
    """Build a small network with all parameters and running statistics away from their start; compiles nothing."""
    spec, image_shape, _ = FAMILIES[family]
    abstract = nnx.eval_shape(lambda: spec.build(image_shape, NUM_OUTPUTS, nnx.Rngs(0), **options))
    graph, state = nnx.split(abstract)
    draw = np.random.default_rng(20231105)
    filled = jax.tree_util.tree_map_with_path(lambda path, leaf: _filled(path, leaf, draw), state)
    return nnx.merge(graph, filled)


def _filled(path: tuple, leaf: jax.ShapeDtypeStruct, draw: np.random.Generator) -> jax.Array:
    name = next(str(entry.key) for entry in reversed(path) if hasattr(entry, "key") and entry.key in _FILL)
    return jnp.asarray(_FILL[name](draw, leaf.shape), leaf.dtype)


def images(family: str, count: int = 4) -> np.ndarray:
    """Draw standard normal images of a family's shape."""
    return np.random.default_rng(7).standard_normal((count, *FAMILIES[family][1])).astype(np.float32)


def run(model: networks.ImageNetwork, batch: np.ndarray) -> tuple[np.ndarray, dict]:
    """Return the logits and the running statistics after them, compiled; the model itself stays as it is."""
    graph, state = nnx.split(model)
    logits, after = _run(graph, state, batch)
    return np.asarray(logits), statistics(after)


@partial(jax.jit, static_argnums=0)
def _run(graph, state, batch):
    model = nnx.merge(graph, state, copy=True)
    return model(batch), nnx.state(model, nnx.BatchStat)


def statistics(state: nnx.State) -> dict[tuple, np.ndarray]:
    """Copy running statistics into NumPy arrays, by path."""
    return {path: np.array(value[...]) for path, value in nnx.to_flat_state(state)}
