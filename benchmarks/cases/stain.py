"""Stain normalisation compared with torchstain and dictionary learning: synthetic tissue, uint8 to float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Inputs, Run, register

VECTORS = torch.tensor([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
MEAN, STD = (0.0, 0.0, 0.0), (1 / 255,) * 3  # grey levels, written by the pass that would write any other statistics


def _make(batch: int, size: int, device: torch.device) -> Inputs:
    """Two stains in patches of 4 x 4 pixels, a third of them glass, with noise."""
    source = torch.Generator().manual_seed(0)
    amounts = torch.rand(batch, 2, size // 4, size // 4, generator=source) * 1.2
    amounts *= torch.rand(batch, 1, size // 4, size // 4, generator=source) > 0.3
    density = torch.einsum("ck,bkhw->bchw", VECTORS, amounts.repeat_interleave(4, 2).repeat_interleave(4, 3))
    light = 240 * (-density).exp() + 2 * torch.randn(batch, 3, size, size, generator=source)
    return {"images": light.clamp(0, 255).byte().to(device)}


def _ours(inputs: Inputs, method: str = "macenko", convention: str = "torchstain", cached: bool = False) -> Run:
    images, matrix, maxima = inputs["images"], None, None
    if cached:
        found = ops.stain_normalize(images, method, convention=convention, return_stains=True)
        matrix, maxima = found.stain_matrix, found.max_concentration

    def run() -> tuple[Tensor, ...]:
        return (
            ops.stain_normalize(
                images, method, convention=convention, stain_matrix=matrix, max_concentration=maxima, mean=MEAN, std=STD
            ),
        )

    return run


def _torchstain(inputs: Inputs) -> Run:
    import torchstain

    peer = torchstain.normalizers.MacenkoNormalizer(backend="torch")

    def run() -> tuple[Tensor, ...]:
        made = [torch.as_tensor(peer.normalize(image, stains=False)[0]) for image in inputs["images"]]
        return (torch.stack(made).permute(0, 3, 1, 2).float(),)

    return run


def _dictionary(inputs: Inputs) -> Run:
    """TIAToolbox's Vahadane: scikit-learn's DictionaryLearning on all tissue, least squares, percentiles."""
    import numpy as np
    from sklearn.decomposition import DictionaryLearning

    def one(image: Tensor) -> Tensor:
        density = -(image.flatten(1).T.double().clamp(min=1) / 255).log().numpy()
        kept = density[(density > 0.15).all(1)]
        learner = DictionaryLearning(
            n_components=2,
            alpha=0.1,  # pyright: ignore[reportArgumentType]  # its stubs say int
            transform_alpha=0.1,
            fit_algorithm="lars",
            transform_algorithm="lasso_lars",
            positive_dict=True,
            max_iter=3,
            transform_max_iter=1000,
        )
        atoms = learner.fit_transform(kept.T).T
        atoms = atoms[np.argsort(-atoms[:, 0])] / np.linalg.norm(atoms, axis=1)[:, None].clip(1e-9)
        c = np.linalg.lstsq(atoms.T, density.T, rcond=None)[0]
        c *= np.array([[1.9705], [1.0308]]) / np.percentile(c, 99, axis=1)[:, None]
        made = 255 * np.exp(-VECTORS.double().numpy() @ c)
        return torch.from_numpy(made.clip(0, 255)).float().view(image.shape)

    return lambda: (torch.stack([one(image) for image in inputs["images"]]),)


def _truth(inputs: Inputs, method: str, convention: str) -> tuple[Tensor, ...]:
    """The exact algorithm in float64, image by image."""
    made = ops.stain_normalize(inputs["images"], method, convention=convention, mean=MEAN, std=STD, backend="reference")
    return (made,)


def _register(
    batch: int,
    size: int,
    mode: str,
    ours: Callable[[Inputs], Run],
    peers: dict[str, Callable[[Inputs], Run]],
    figures: dict[str, float],
    method: str = "macenko",
    convention: str = "torchstain",
    tolerance: float = 0.02,
) -> None:
    register(
        Case(
            op="stain_normalize",
            shape=f"uint8 [{batch}, 3, {size}, {size}] to float32, {method}",
            mode=mode,
            make=partial(_make, batch, size),
            contenders={"fastmtl": ours, **peers},
            min_bytes=batch * size * size * 15,
            tolerance=tolerance,  # torchstain cuts off to whole grey levels
            truth=partial(_truth, method=method, convention=convention),
            figures=figures,
            items=batch,
        )
    )


_TORCHSTAIN = {"torchstain": _torchstain}
_register(1, 1024, "estimate and apply", _ours, _TORCHSTAIN, {"torchstain": 10})
_register(32, 256, "estimate and apply", _ours, _TORCHSTAIN, {"torchstain": 10})
_register(1, 1024, "known matrix", partial(_ours, cached=True), _TORCHSTAIN, {"torchstain": 20})
_register(
    1,
    256,
    "estimate and apply",
    partial(_ours, method="vahadane", convention="tiatoolbox"),
    {"sklearn DictionaryLearning (TIAToolbox)": _dictionary},
    {"sklearn DictionaryLearning (TIAToolbox)": 50},
    method="vahadane",
    convention="tiatoolbox",
    tolerance=1.0,  # theirs stops after 3 iterations, wherever that is
)
