"""Predictions for images and whole slides without labels."""
