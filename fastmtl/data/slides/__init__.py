"""Whole-slide images: scanning and indexing files, reading regions and their tiles, finding tissue."""
