"""Imported once by the process that all victims are forked from; it starts no thread and uses no device."""

import imagecodecs  # noqa: F401
import nvidia.dali.fn  # noqa: F401
import PIL.Image  # noqa: F401
import sklearn.metrics
import sklearn.model_selection  # noqa: F401

import fastmtl.api.runs
import fastmtl.api.scoring
import fastmtl.api.training
import fastmtl.cli.train
import fastmtl.kernels.png_numba
import fastmtl.training.progress  # noqa: F401
