"""Splits that keep each patient on one side."""
