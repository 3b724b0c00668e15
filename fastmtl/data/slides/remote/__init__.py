"""Slides on servers: read by ranges of bytes, never copied whole."""
