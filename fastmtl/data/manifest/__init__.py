"""Tables of samples: reading, checking and writing manifests."""
