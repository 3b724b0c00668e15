"""Stain normalisation of tiles and slides: normalisers, statistics, targets and their files."""
