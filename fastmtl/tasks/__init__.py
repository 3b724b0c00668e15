"""Tasks: what to predict, with its loss and its metrics. Recipes build them by name."""

from .auxiliary import AuxiliarySegmentation
from .base import BaseTask
from .classification import BinaryClassification, Classification
from .registry import check_task, create_task, list_tasks, register_task, target_kind
from .regression import BoundingBox, Regression
from .segmentation import BinarySegmentation, MultiClassSegmentation, MultiLabelSegmentation
from .self_supervised import Contrastive, Reconstruction
from .universal import UniversalSegmentation

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
