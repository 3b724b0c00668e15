"""How data lie on disk: folders of tiles, slides, published data sets, formats that users register."""
