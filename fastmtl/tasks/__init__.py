"""Tasks: what to predict, the loss that teaches it, the metrics that judge it. Recipes build them by name."""

from .auxiliary import AuxiliarySegmentation
from .base import BaseTask
from .classification import BinaryClassification, Classification
from .numbers import BoundingBox, Regression
from .registry import check_task, create_task, list_tasks, register_task, target_kind
from .segmentation import BinarySegmentation, MultiClassSegmentation, MultiLabelSegmentation
from .universal import UniversalSegmentation
from .unlabelled import Contrastive, Reconstruction

__all__ = [
    "AuxiliarySegmentation",
    "BaseTask",
    "BinaryClassification",
    "BinarySegmentation",
    "BoundingBox",
    "Classification",
    "Contrastive",
    "MultiClassSegmentation",
    "MultiLabelSegmentation",
    "Reconstruction",
    "Regression",
    "UniversalSegmentation",
    "check_task",
    "create_task",
    "list_tasks",
    "register_task",
    "target_kind",
]
