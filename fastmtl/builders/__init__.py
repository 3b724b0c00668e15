"""From a recipe to the parts of a training: data sets, stains, tasks, model, balancer, optimizer."""
