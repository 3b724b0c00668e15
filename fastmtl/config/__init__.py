"""Recipes: their schema, their files, how they are laid over each other, and what their values may be."""

from .files import list_recipes as list_recipes
from .load import as_dict as as_dict
from .load import load_recipe as load_recipe
from .load import optimizer_of as optimizer_of
from .load import parse_override as parse_override
from .load import parse_overrides as parse_overrides
from .load import stages_of as stages_of
from .parsing import ConfigError as ConfigError
from .schema import DataConfig as DataConfig
from .schema import OptimizerConfig as OptimizerConfig
from .schema import Recipe as Recipe
from .schema import StageConfig as StageConfig
from .schema import TrainingConfig as TrainingConfig
