"""Networks with one shared trunk and one output per task; plain torch modules, usable without the trainer."""

from .heads import Output
from .joint_unet import JointUNet
from .registry import check_model, create_model, list_models, register_model

__all__ = ["JointUNet", "Output", "check_model", "create_model", "list_models", "register_model"]
