"""Loading: training batches from a data set."""
