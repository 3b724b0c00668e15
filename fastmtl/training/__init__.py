"""Training: stages, the loop over steps, checkpoints and the run folder."""
