"""Builds the parts of a training run from a recipe: data sets, stains, tasks, model, balancer, optimizer."""
