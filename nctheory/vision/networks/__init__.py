"""Image networks in Flax NNX that give their logits and the features of every block by name.

spec = network("resnet18")
model = spec.build((32, 32, 3), 10, nnx.Rngs(0))
logits, features = model(images), model.layer_features(images)
"""

import re

from nctheory._errors import ArgumentError
from nctheory.vision.networks._base import ImageNetwork as ImageNetwork
from nctheory.vision.networks._base import NetworkSpec as NetworkSpec
from nctheory.vision.networks._base import num_parameters as num_parameters
from nctheory.vision.networks.densenet import DenseNetSpec as DenseNetSpec
from nctheory.vision.networks.mlp import MlpSpec as MlpSpec
from nctheory.vision.networks.resnet import ResNetSpec as ResNetSpec
from nctheory.vision.networks.vgg import VggSpec as VggSpec

_SPECS: dict[str, NetworkSpec] = {
    "resnet18": ResNetSpec(),
    "resnet18-w16": ResNetSpec(widths=(16, 32, 64, 128)),
    "resnet-small": ResNetSpec(blocks=(1, 1, 1, 1), widths=(16, 32, 64, 128)),
    "resnet-small-wide": ResNetSpec(blocks=(1, 1, 1, 1), widths=(16, 64, 128, 256)),
    "vgg11": VggSpec("11"),
    "vgg13": VggSpec("13"),
    "vgg16": VggSpec("16"),
    "vgg19": VggSpec("19"),
    "densenet-bc-100-12": DenseNetSpec(),
    "densenet-bc-40-12": DenseNetSpec(depth=40),
    "mlp": MlpSpec(),
}
_MLP = re.compile(r"mlp-([1-9][0-9]*)x([1-9][0-9]*)", re.ASCII)
_WITH_WIDTH = re.compile(r"(resnet18|vgg(?:11|13|16|19))-w([1-9][0-9]*)", re.ASCII)


def network_names() -> tuple[str, ...]:
    """List the names that `network` knows, in alphabetical order; it takes other widths and MLPs of other sizes too."""
    return tuple(sorted(_SPECS))


def network(name: str) -> NetworkSpec:
    """Return the specification of a named network.

    "resnet18" and the VGG names take a suffix "-wN" that sets the width of the first stage, 64 without it; the later
    stages keep their ratio to it. "resnet-small" has the widths of "resnet18-w16" and one block a stage, and
    "resnet-small-wide" twice the width after the first stage, whose images are large and cost most. VGG networks are
    batch-normalised. MLPs are not: "mlp" has two hidden layers of 256, "mlp-5x512" five of 512.

    Args:
        name: a name from `network_names()`, or one with another width.

    Returns:
        The specification, hashable and equal for equal networks.

    Raises:
        ValueError: if the name is unknown; the message lists the known ones.

    Example:
        >>> network("resnet18-w8").widths
        (8, 16, 32, 64)
        >>> network("resnet18-w64") == network("resnet18")
        True
        >>> network("mlp-3x128").widths
        (128, 128, 128)
    """
    if name in _SPECS:
        return _SPECS[name]
    if sizes := _MLP.fullmatch(str(name)):
        return MlpSpec(widths=(int(sizes[2]),) * int(sizes[1]))
    match = _WITH_WIDTH.fullmatch(str(name))
    if match is None:
        raise ArgumentError(
            f"Argument `name` must be one of {list(network_names())} (for resnet18 and vgg also with -wN, the width "
            f"of the first stage; mlp-LxN has L hidden layers of N), but is {name!r}."
        )
    family, width = match[1], int(match[2])
    if family == "resnet18":
        return ResNetSpec(widths=tuple(factor * width for factor in (1, 2, 4, 8)))
    return VggSpec(family.removeprefix("vgg"), width=width)
