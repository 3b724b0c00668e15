"""Maps over whole slides: cut, written as tiled TIFF, outlined as GeoJSON."""
