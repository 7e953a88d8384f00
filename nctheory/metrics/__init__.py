"""Measurements on features: collapse, fine structure, streaming forms, transfer and clustering."""

from nctheory.metrics.clustering import ClusterProbe as ClusterProbe
from nctheory.metrics.clustering import cluster_and_probe as cluster_and_probe
from nctheory.metrics.clustering import surrogate_features as surrogate_features
from nctheory.metrics.clustering import tsne_embedding as tsne_embedding
from nctheory.metrics.collapse import CollapseMetrics as CollapseMetrics
from nctheory.metrics.collapse import collapse_metrics as collapse_metrics
from nctheory.metrics.fine import FineStructure as FineStructure
from nctheory.metrics.fine import fine_structure as fine_structure
from nctheory.metrics.held_out import HeldOutAccumulator as HeldOutAccumulator
from nctheory.metrics.held_out import HeldOutCollapse as HeldOutCollapse
from nctheory.metrics.held_out import LayerMetrics as LayerMetrics
from nctheory.metrics.held_out import held_out_collapse as held_out_collapse
from nctheory.metrics.streaming import CollapseAccumulator as CollapseAccumulator
from nctheory.metrics.streaming import CollapseSecondPass as CollapseSecondPass
from nctheory.metrics.transfer import LinearProbe as LinearProbe
from nctheory.metrics.transfer import knn_accuracy as knn_accuracy
from nctheory.metrics.transfer import linear_probe as linear_probe
from nctheory.metrics.transfer import linear_probe_accuracy as linear_probe_accuracy
from nctheory.metrics.transfer import nearest_center_accuracy as nearest_center_accuracy
