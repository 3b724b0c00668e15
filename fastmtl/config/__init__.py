"""Recipes: their schema, their files, how they are merged, and which values are valid."""

from .check_sets import data_of as data_of
from .files import list_recipes as list_recipes
from .load import as_dict as as_dict
from .load import at_key as at_key
from .load import load_recipe as load_recipe
from .load import load_run_recipe as load_run_recipe
from .load import parse_override as parse_override
from .load import parse_overrides as parse_overrides
from .parsing import ConfigError as ConfigError
from .parsing import UsageError as UsageError
from .parsing import dotted as dotted
from .parsing import merge as merge
from .renamed import RENAMED as RENAMED
from .schema import DataConfig as DataConfig
from .schema import DistributedConfig as DistributedConfig
from .schema import OptimizerConfig as OptimizerConfig
from .schema import Recipe as Recipe
from .schema import StageConfig as StageConfig
from .schema import TrainingConfig as TrainingConfig
from .sets import SetConfig as SetConfig
from .stages import optimizer_of as optimizer_of
from .stages import stages_of as stages_of
from .validation import validate as validate
