"""Checks before training: the contents of a data set and its problems."""
