"""The same held-out images by method: predictions, saliency maps, and feature maps of the encoder's convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.outlines import PREDICTED_COLOUR, TRUE_COLOUR, outlined
from ..evaluation.samples import Sample
from .drawing import COLOURS, paged, pages, save, wrapped
from .samples import Seen

_CELL = 1.35  # inches
_SIDE = 384  # longer side of a picture, pixels
_FILL = 0.45
_CAPTION, _LINE = 26, 0.11  # letters on a line below a picture, and its height, inches
_FEATURED = 2  # images whose feature maps are drawn
Draw = Callable[[Any, Sample], None]


def prediction_figures(module: ModuleType, seen: Seen, titles: Mapping[str, str], out: Path, scale: str) -> list[Path]:
    """Write predictions-TASK.png: the true area and each row's prediction, for every task with masks."""
    tasks = dict.fromkeys(task for samples in seen.by_row.values() for sample in samples for task in sample.masks)
    written = []
    for task in tasks:
        rows = {name: samples for name, samples in seen.by_row.items() if task in samples[0].masks}
        several = len(next(iter(rows.values()))[0].masks[task].names) > 1
        key = _structures_key if several else _outline_key
        names = next(iter(rows.values()))[0].masks[task].names
        written += _pages(
            module,
            f"predictions-{task}",
            f"{task.replace('_', ' ')}: predictions on held-out images, {seen.key}, scale {scale}",
            _columns(rows, titles, lambda panel, sample, t=task: _predicted(panel, sample, t)),
            (
                "input" if not several else "true",
                lambda panel, sample, t=task, s=several: _true(panel, sample, t, fill=s),
            ),
            out,
            lambda figure, key=key, names=names: key(figure, names),
        )
    return written


def saliency_figures(
    module: ModuleType, seen: Seen, rows: Sequence[str], titles: Mapping[str, str], task: str, out: Path, scale: str
) -> list[Path]:
    """Write saliency-TASK.png: the saliency of each of `rows`, as yellow light."""
    known = {name: seen.by_row[name] for name in rows if name in seen.by_row and seen.by_row[name][0].saliency_maps}
    if not known:
        return []
    return _pages(
        module,
        f"saliency-{task}",
        f"{task.replace('_', ' ')}: where the networks look on held-out images, {seen.key}, scale {scale}",
        _columns(known, titles, lambda panel, sample: _saliency(panel, sample, task)),
        ("input", lambda panel, sample: _input(panel, sample, task)),
        out,
        None,
    )


def feature_figure(
    module: ModuleType, seen: Seen, rows: Sequence[str], titles: Mapping[str, str], out: Path, scale: str
) -> Path | None:
    """Write features.png: for each image a line of maps per row, one for each convolution of the encoder."""
    known = {name: seen.by_row[name] for name in rows if name in seen.by_row and seen.by_row[name][0].maps}
    if not known:
        return None
    lines = [
        (name, sample)
        for number in range(min(_FEATURED, len(seen.ids)))
        for name, found in known.items()
        for sample in [found[number]]
    ]
    across = 1 + max(len(sample.maps) for _, sample in lines)
    figure = module.Figure(figsize=(0.9 + 1.0 * across, 0.7 + 1.1 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), across, squeeze=False)
    for place, ((name, sample), panels) in enumerate(zip(lines, grid, strict=True)):
        for panel in panels:
            _bare(panel)
        panels[0].imshow(_enlarged(sample.image))
        panels[0].set_ylabel(f"{wrapped(titles[name], 20)}", fontsize=7)
        for number, values in enumerate(sample.maps):
            panels[1 + number].imshow(values, cmap="gray", interpolation="nearest")
            if place == 0:
                panels[1 + number].set_title(f"conv {number + 1}", fontsize=7)
            height, width = values.shape
            panels[1 + number].set_xlabel(f"{height} x {width}", fontsize=5.5, labelpad=1)
    grid[0][0].set_title("input", fontsize=7)
    heading = "Feature maps of the encoder's convolutions: mean over the channels, lowest black, highest white"
    return save(figure, out / "features.png", f"{heading}; {seen.key}, scale {scale}")


def _columns(
    rows: Mapping[str, Sequence[Sample]], titles: Mapping[str, str], draw: Draw
) -> list[tuple[str, list[Sample], Draw]]:
    return [(titles[name], list(samples), draw) for name, samples in rows.items()]


def _pages(
    module: ModuleType,
    name: str,
    heading: str,
    columns: Sequence[tuple[str, list[Sample], Draw]],
    first: tuple[str, Draw],
    out: Path,
    key: Callable[[Any], None] | None,
) -> list[Path]:
    """Pages with a line per image and a column per row, the first column being the image itself."""
    written, parts = [], pages(columns)
    for number, part in enumerate(parts, 1):
        shown = [(first[0], part[0][1], first[1]), *part]
        lines = len(part[0][1])
        below = max(len(s.answers) for _, samples, _ in part for s in samples) + (key is not None)
        size = (0.2 + _CELL * len(shown), 0.75 + (_CELL + 0.06 + _LINE * below) * lines)
        figure = module.Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, len(shown), squeeze=False)
        for column, (head, samples, draw) in enumerate(shown):
            for line, sample in enumerate(samples):
                panel = grid[line][column]
                _bare(panel)
                draw(panel, sample)
            grid[0][column].set_title(wrapped(head, 24), fontsize=7)
        if key is not None:
            key(figure)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.02)
        written.append(save(figure, paged(out, name, number, len(parts)), heading))
    return written


def _bare(panel: Any) -> None:
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set_visible(False)


def _below(panel: Any, text: str) -> None:
    panel.set_xlabel(text, fontsize=6.5, labelpad=2)


def _input(panel: Any, sample: Sample, task: str) -> None:
    panel.imshow(_enlarged(sample.image))
    answer = sample.answers.get(task)
    _below(panel, answer.true if answer is not None else "")


def _saliency(panel: Any, sample: Sample, task: str) -> None:
    panel.imshow(sample.saliency_maps[task])
    _below(panel, _answers(sample, [task]))


def _answers(sample: Sample, tasks: Sequence[str]) -> str:
    """The predicted classes, a cross before wrong ones."""
    lines = []
    for answer in (sample.answers[task] for task in tasks if task in sample.answers):
        wrong = "\N{MULTIPLICATION SIGN} " if answer.true and answer.true != answer.predicted else ""
        lines.append(f"{wrong}{answer.predicted} {answer.probability:.2f}")
    return "\n".join(wrapped(one, _CAPTION) for one in lines)


def _true(panel: Any, sample: Sample, task: str, *, fill: bool) -> None:
    masks = sample.masks[task].true
    shown = _enlarged(sample.image)
    if fill and masks is not None:
        shown = _filled(sample.image, masks, None)
    panel.imshow(shown)
    _below(panel, "\n".join(wrapped(answer.true, _CAPTION) for answer in sample.answers.values() if answer.true))


def _predicted(panel: Any, sample: Sample, task: str) -> None:
    masks = sample.masks[task]
    true = np.zeros_like(masks.predicted) if masks.true is None else masks.true
    if len(masks.names) > 1:
        panel.imshow(_filled(sample.image, masks.predicted, true))
    else:
        pixels = _enlarged(sample.image).astype(np.float32)
        panel.imshow(outlined(pixels, _union(true), _union(masks.predicted)).astype(np.uint8))
    overlap, size = (masks.predicted & true).sum(), masks.predicted.sum() + true.sum()
    dice = "" if masks.true is None else f"Dice {2 * overlap / size if size else 1:.2f}"
    if (covered := masks.predicted.any(0).mean()) in (0, 1):  # it has no outline
        dice += f"{', ' if dice else ''}{'predicted everywhere' if covered else 'predicted nowhere'}"
    _below(panel, "\n".join(text for text in (dice, _answers(sample, list(sample.answers))) if text))


def _filled(image: NDArray[np.uint8], masks: NDArray[np.bool_], true: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Each structure in its colour; the true outline in white."""
    pixels = _enlarged(image).astype(np.float32)
    for number, mask in enumerate(masks):
        colour = np.array(_rgb(COLOURS[number % len(COLOURS)]), np.float32)
        there = _enlarged(mask)
        pixels[there] = (1 - _FILL) * pixels[there] + _FILL * colour
        edge = there & ~_shrunk(there)
        pixels[edge] = colour
    if true is not None:
        for mask in true:
            there = _enlarged(mask)
            pixels[there & ~_shrunk(there)] = 255
    return pixels.astype(np.uint8)


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels within two of the edge."""
    for _ in range(2):
        padded = np.pad(mask, 1, mode="edge")
        mask = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
    """[h, w] or [h, w, 3] at the size of the pictures: masks by nearest neighbour, images smoothly."""
    from PIL import Image

    scale = _SIDE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    if pixels.dtype == np.bool_:
        shown = Image.fromarray(pixels.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(shown) > 127
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _union(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[C, H, W] -> all structures together, at the size of the pictures."""
    return _enlarged(np.asarray(masks.any(0)))


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue


def _outline_key(figure: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    colours = ["#" + "".join(f"{part:02x}" for part in colour) for colour in (TRUE_COLOUR, PREDICTED_COLOUR)]
    lines = [
        Line2D([], [], color=colours[0], linewidth=2.5),
        Line2D([], [], color=colours[1], linestyle="--", linewidth=2.5),
    ]
    figure.legend(lines, ["true outline", "predicted outline"], loc="outside lower center", ncols=2)


def _structures_key(figure: Any, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=COLOURS[number % len(COLOURS)]) for number in range(len(names))]
    patches.append(Patch(facecolor="#555555", edgecolor="white", linewidth=1.5))
    shown = [*(name.replace("_", " ") for name in names), "true outline, over the prediction"]
    figure.legend(patches, shown, loc="outside lower center", ncols=len(shown))
