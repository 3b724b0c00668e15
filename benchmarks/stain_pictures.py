"""The figures of docs/stain.md: source, target and every method side by side, made from images that are not in the
project: `python -m fastmtl.benchmarks.stain_pictures --data ../shared/data --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmtl import data, ops

METHODS = ("macenko", "vahadane", "ruifrok", "reinhard", "modified_reinhard")
CONVENTIONS = ("torchstain", "staintools", "tiatoolbox", "cucim", "histomicstk")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds stain/ and wsi/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    options = parser.parse_args(argv)
    needed = (options.data / "stain" / "source.png", options.data / "wsi" / "CMU-1-Small-Region.svs")
    if missing := [str(path) for path in needed if not path.exists()]:
        print(f"stain_pictures: not found: {', '.join(missing)}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    target = _read(options.data / "stain" / "target.png")
    slide = _slide(options.data / "wsi" / "CMU-1-Small-Region.svs")
    for name, source in (("pair", _read(options.data / "stain" / "source.png")), ("cmu", slide)):
        print(_draw(options.out / f"{name}-methods.png", _methods(source, target)))
        print(_draw(options.out / f"{name}-conventions.png", _conventions(source, target)))
        print(_draw(options.out / f"{name}-stains.png", _stains(source, target)))
    whole = _pixels(options.data / "wsi" / "CMU-1-Small-Region.svs")
    print(_draw(options.out / "cmu-slide.png", _per_slide(whole, target)))
    return 0


def _read(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _slide(path: Path) -> Tensor:
    """The 448 x 448 window with the most tissue."""
    pixels = _pixels(path)
    tiles = pixels.unfold(1, 448, 224).unfold(2, 448, 224)
    mean = tiles.float().mean((0, 3, 4))
    row, column = divmod(int(mean.argmin()), mean.shape[1])
    return tiles[:, row, column].contiguous()


def _pixels(path: Path) -> Tensor:
    import tifffile

    return torch.from_numpy(tifffile.imread(path)).permute(2, 0, 1)


def _methods(source: Tensor, target: Tensor) -> dict[str, Tensor]:
    made = {}
    for name in METHODS:
        convention = "staintools" if name == "vahadane" else "torchstain"  # torchstain has no Vahadane
        made[name] = ops.stain_normalize(source[None], name, convention=convention, target=target)[0]
    return {"source": source, "target": target, **made}


def _conventions(source: Tensor, target: Tensor) -> dict[str, Tensor]:
    made = {name: ops.stain_normalize(source[None], convention=name, target=target)[0] for name in CONVENTIONS}
    return {"source": source, "target": target, **made}


def _per_slide(pixels: Tensor, target: Tensor, tile: int = 256) -> dict[str, Tensor]:
    """A whole slide normalised with one estimate, and with one estimate per tile: neighbouring tiles then differ, most
    if they have little tissue."""
    rows, columns = pixels.shape[1] // tile, pixels.shape[2] // tile
    whole = pixels[:, : rows * tile, : columns * tile]
    tiles = whole.unfold(1, tile, tile).unfold(2, tile, tile).permute(1, 2, 0, 3, 4).flatten(0, 1)
    made = {"slide": whole, "target": target}
    for per in ("slide", "tile"):
        normalizer = data.StainNormalizer(target=target, per=per)
        if per == "slide":
            normalizer.fit_slide("slide", tiles)
        grid = normalizer.transform(tiles, slides=["slide"] * len(tiles)).unflatten(0, (rows, columns))
        made[f"per {per}"] = grid.permute(2, 0, 3, 1, 4).reshape(whole.shape)
    return made


def _stains(source: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Hematoxylin and eosin, and examples of the augmentation."""
    result = ops.stain_normalize(source[None], target=target, return_stains=True)
    normalizer = data.StainNormalizer(target=target, per="tile")
    draws = torch.tensor([[0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.7, 0.2]])
    augmented = normalizer.transform(source.expand(3, -1, -1, -1), draws=draws)
    separated = {"macenko": result.images[0], "hematoxylin": _some(result.hematoxylin), "eosin": _some(result.eosin)}
    return {
        "source": source,
        "target": target,
        **separated,
        **{f"augmented {place + 1}": image for place, image in enumerate(augmented)},
    }


def _some(images: Tensor | None) -> Tensor:
    if images is None:
        raise ValueError("this method has no stain images")
    return images[0]


def _draw(path: Path, pictures: dict[str, Tensor], columns: int = 4) -> Path:
    from PIL import Image, ImageDraw

    size, bar = 320, 22
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (size + 6), rows * (size + bar + 6)), "white")
    for place, (name, image) in enumerate(pictures.items()):
        x, y = place % columns * (size + 6), place // columns * (size + bar + 6)
        edge = min(image.shape[1:])
        square = Image.fromarray(image[:, :edge, :edge].permute(1, 2, 0).numpy()).resize((size, size))
        ImageDraw.Draw(page).text((x + 4, y + 4), name, fill="black")
        page.paste(square, (x, y + bar))
    page.save(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
