"""Feature-wise linear modulation: a scale and a shift for every channel, computed from the sample's metadata."""

from __future__ import annotations

from torch import Tensor, nn


class FiLM(nn.Module):
    """x [B, C, H, W], metadata [B, M] -> (1 + scale(metadata)) * x + shift(metadata), per channel.

    `scale` and `shift` are fully connected networks of three layers. Their last layers start at zero, so that training
    starts from the network without FiLM.

    Args:
        num_features: M.
        channels: C.
        hidden: width of both networks' hidden layers.

    Source: Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer; here 1 + scale is its scale.
    """

    def __init__(self, num_features: int, channels: int, *, hidden: int = 64):
        super().__init__()
        self.num_features = num_features
        self.scale, self.shift = (_three_layers(num_features, hidden, channels) for _ in range(2))

    def forward(self, x: Tensor, metadata: Tensor) -> Tensor:
        scale, shift = (network(metadata)[:, :, None, None] for network in (self.scale, self.shift))
        return (1 + scale) * x + shift


def _three_layers(inner: int, hidden: int, outer: int) -> nn.Sequential:
    last = nn.Linear(hidden, outer)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(inner, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, hidden), nn.ReLU(inplace=True), last
    )
