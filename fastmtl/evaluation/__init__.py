"""How a trained network fares on held-out images, and what it looks at."""
