"""Real images: data sets as arrays, label maps that merge their classes, image networks and their training.

What needs Flax (networks, training, evaluation) is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

from nctheory.vision._train_config import ImageTrainConfig as ImageTrainConfig
from nctheory.vision.coarse import SCHEMES as SCHEMES
from nctheory.vision.coarse import SEMANTIC_GROUPS as SEMANTIC_GROUPS
from nctheory.vision.coarse import LabelMap as LabelMap
from nctheory.vision.coarse import coarse_labels as coarse_labels
from nctheory.vision.coarse import label_map as label_map
from nctheory.vision.datasets import SPLITS as SPLITS
from nctheory.vision.datasets import ImageDataset as ImageDataset
from nctheory.vision.datasets import dataset_names as dataset_names
from nctheory.vision.datasets import load as load
from nctheory.vision.images import Images as Images
from nctheory.vision.scores import SCORES as SCORES
from nctheory.vision.scores import CoarseData as CoarseData
from nctheory.vision.scores import embeddings as embeddings
from nctheory.vision.scores import load_coarse as load_coarse
from nctheory.vision.scores import scores_along_training as scores_along_training
from nctheory.vision.scores import scores_of_controls as scores_of_controls
from nctheory.vision.scores import scores_of_inputs as scores_of_inputs

if TYPE_CHECKING:
    from nctheory.vision import networks as networks
    from nctheory.vision.layers import NetworkLayers as NetworkLayers
    from nctheory.vision.layers import layer_collapse as layer_collapse
    from nctheory.vision.spectra import NetworkSpectra as NetworkSpectra
    from nctheory.vision.spectra import layer_spectra as layer_spectra
    from nctheory.vision.train import Evaluation as Evaluation
    from nctheory.vision.train import NonFiniteLossError as NonFiniteLossError
    from nctheory.vision.train import TrainedNetwork as TrainedNetwork
    from nctheory.vision.train import TrainedNetworks as TrainedNetworks
    from nctheory.vision.train import TrainHistory as TrainHistory
    from nctheory.vision.train import check_batch_size as check_batch_size
    from nctheory.vision.train import collapse_of as collapse_of
    from nctheory.vision.train import evaluate as evaluate
    from nctheory.vision.train import extract_features as extract_features
    from nctheory.vision.train import extract_logits as extract_logits
    from nctheory.vision.train import load_network as load_network
    from nctheory.vision.train import train_network as train_network
    from nctheory.vision.train import train_networks as train_networks

_OF_TRAINING = (
    "Evaluation",
    "NonFiniteLossError",
    "TrainHistory",
    "TrainedNetwork",
    "TrainedNetworks",
    "check_batch_size",
    "collapse_of",
    "evaluate",
    "extract_features",
    "extract_logits",
    "load_network",
    "train_network",
    "train_networks",
)


_OF_LAYERS = ("NetworkLayers", "layer_collapse")
_OF_SPECTRA = ("NetworkSpectra", "layer_spectra")


def __getattr__(name: str):
    """Import what needs Flax on first access."""
    if name == "networks":
        return importlib.import_module("nctheory.vision.networks")
    if name in _OF_LAYERS:
        return getattr(importlib.import_module("nctheory.vision.layers"), name)
    if name in _OF_SPECTRA:
        return getattr(importlib.import_module("nctheory.vision.spectra"), name)
    if name in _OF_TRAINING:
        return getattr(importlib.import_module("nctheory.vision.train"), name)
    raise AttributeError(f"module 'nctheory.vision' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, those that are imported later among them."""
    later = ("networks", *_OF_LAYERS, *_OF_SPECTRA, *_OF_TRAINING)
    return sorted({*(name for name in globals() if not name.startswith("_")), *later})
