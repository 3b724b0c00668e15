"""Synthetic tiles and slides: demo data without a download."""
