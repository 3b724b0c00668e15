"""Pictures of every kind: files, arrays, run-length codes and polygons, as pixels."""
