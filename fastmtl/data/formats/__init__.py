"""Formats of data sets on disk: folders of tiles, slides, published data sets, and those that users register."""
