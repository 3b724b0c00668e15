"""Networks with one shared trunk and one output per task; plain torch modules, usable without the trainer."""

from . import big_unet, classifiers, daformer_models, small_unet, smp_models, unet_multi  # noqa: F401 (importing registers)
from .base import MultiTaskModel, PyramidModel
from .depth import encoder_depths
from .heads import Output, Queries
from .joint_unet import JointUNet
from .mask2tasks import Mask2Tasks
from .momentum import MomentumEmbedding
from .published import Published, normalization_of, published_weights
from .registry import ModelInfo, Row, check_model, create_model, list_models, model_info, register_model
from .weights import WeightsReport, load_weights

__all__ = [
    "JointUNet",
    "Mask2Tasks",
    "ModelInfo",
    "MomentumEmbedding",
    "MultiTaskModel",
    "Output",
    "Published",
    "PyramidModel",
    "Queries",
    "Row",
    "WeightsReport",
    "check_model",
    "create_model",
    "encoder_depths",
    "list_models",
    "load_weights",
    "model_info",
    "normalization_of",
    "published_weights",
    "register_model",
]
