"""What `fastmtl` does with a recipe or a run, for the command line, `reproduce` and Python alike."""
