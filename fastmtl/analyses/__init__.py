"""What a trained network looks at, on a few held-out images: saliency, feature maps, filters. Files of the run folder
for the report, made once the training and its evaluation are over."""

from .features import FeatureMap, feature_maps, first_filters
from .saliency import has_saliency, saliency
from .writing import analyse

__all__ = ["FeatureMap", "analyse", "feature_maps", "first_filters", "has_saliency", "saliency"]
