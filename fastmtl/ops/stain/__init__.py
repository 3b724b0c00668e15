"""Stain normalisation as ops on uint8 batches."""
