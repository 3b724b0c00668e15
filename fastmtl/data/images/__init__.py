"""Pictures of every kind as pixels: files, arrays, run-length codes and polygons."""
