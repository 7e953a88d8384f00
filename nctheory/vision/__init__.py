"""Real images: data sets as arrays, and the label maps that merge their classes."""

from nctheory.vision.coarse import SCHEMES as SCHEMES
from nctheory.vision.coarse import LabelMap as LabelMap
from nctheory.vision.coarse import coarse_labels as coarse_labels
from nctheory.vision.coarse import label_map as label_map
from nctheory.vision.datasets import SPLITS as SPLITS
from nctheory.vision.datasets import ImageDataset as ImageDataset
from nctheory.vision.datasets import dataset_names as dataset_names
from nctheory.vision.datasets import load as load
from nctheory.vision.scores import SCORES as SCORES
from nctheory.vision.scores import CoarseData as CoarseData
from nctheory.vision.scores import embeddings as embeddings
from nctheory.vision.scores import load_coarse as load_coarse
from nctheory.vision.scores import scores_along_training as scores_along_training
from nctheory.vision.scores import scores_of_controls as scores_of_controls
from nctheory.vision.scores import scores_of_inputs as scores_of_inputs
