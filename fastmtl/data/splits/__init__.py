"""Splits that keep patients whole."""
