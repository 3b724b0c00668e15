"""Whole-slide images: what a file holds, found once; the pieces of a region; regions of tissue."""
