"""Evaluation of a trained network on held-out images: scores per image, saliency, feature maps."""
