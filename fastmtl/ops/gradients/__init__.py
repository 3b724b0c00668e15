"""Ops on task gradients: Gram matrix, PCGrad, combination, the fused optimizer step."""
