"""Losses of the papers' rows at the first step, on images, boxes and slices like theirs, have the size that the papers'
and their authors' own numbers imply: a loss in other units makes the weights of a row mean nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.published import drawn_mask, write_arrays, write_for_recipes, write_gi_tract
from PIL import Image

from fastmtl.builders import components, datasets, pretrained, stains
from fastmtl.config import load_recipe
from fastmtl.reproduce.plan import rows_of

CPU = torch.device("cpu")
ENTROPY = (0.35, 1.6)  # of two classes, ln 2 = 0.69 without knowledge; UNet-multi's first epoch means are 0.49 to 1.5


def write_photographs(root, size=64):
    """Pets as the UNet-multi authors stored them; photographs by mean and spread, heads of the usual size."""
    source = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5), ("test", 5)):
        coarse = source.normal((123, 114, 101), 68, (count, 8, 8, 3)).clip(0, 255)
        heads = np.array([90.0, 40.0, 170.0, 120.0]) + source.normal(0, 20, (count, 4))
        arrays = {
            "images": coarse.repeat(size // 8, 1).repeat(size // 8, 2).astype(np.uint8),
            "masks": np.stack([drawn_mask(number, size, size)[..., None] for number in range(count)]),
            "bboxes": heads.clip(0, 255) * size / 256,
            "binary": np.arange(count)[:, None] % 2,
        }
        write_arrays(root / split, arrays)
    return root


def first_losses(name, root, **table):
    """Task -> (loss, its weight) at the first step of a row at scale tiny."""
    recipe = load_recipe(name, {"data": table, "training": {"device": "cpu"}}, scale="tiny")
    found = datasets.read_splits(recipe, root)
    tasks = components.build_tasks(recipe, found.train.class_names, found.train.classes)
    model = components.build_model(recipe, tasks, CPU)
    recipe = pretrained.with_normalization(recipe, model)
    stain = stains.build_normalizer(recipe)
    if stain is not None:
        stains.fit_slides(stain, found.train.tiles, recipe)
    loader = components.build_loader(recipe, found.train, tasks, train=True, device=CPU, stain=stain)
    batch = next(iter(loader))
    outputs = model(batch)
    losses = {task.name: task.loss(outputs[task.name], batch) for task in tasks}
    if len(tasks) == 1:
        return {name: (loss.item(), 1.0) for name, loss in losses.items()}
    weights = components.build_balancer(recipe).weights(None, losses)
    return {name: (loss.item(), weight.item()) for (name, loss), weight in zip(losses.items(), weights, strict=True)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("pets"))


@pytest.mark.parametrize("row", rows_of("unet_multi"))
def test_unet_multi(row, photographs):
    """In the authors' logs the first epoch's mean is 67,262 for the reconstruction and 1,673 to 2,326 for the box,
    which starts higher, as the network knows no box yet."""
    sizes = {
        "mask": ENTROPY,
        "class": ENTROPY,
        "box": (2_326, 10 * 2_326),
        "reconstruction": (0.75 * 67_262, 1.5 * 67_262),
    }
    wanted = {  # table 2
        "base": (1,),
        "mtl": (1, 1, 1),
        "mtl_1_1_1e-3": (1, 1, 1e-3),
        "mtl_0.8_0.2_1e-3": (0.8, 0.2, 1e-3),
        "mtl_lessdepth": (1, 1, 1),
        "mtl_class": (1, 1),
        "mtl_class_0.8_0.2": (0.8, 0.2),
        "mtl_bbox": (1, 1),
        "mtl_bbox_1e-3": (1, 1e-3),
        "mtl_rec": (1, 1, 1e-5),
        "mtl_rec_0.8_0.2": (0.8, 0.2, 1e-5),
        "mtl_rec_learned": (1, 1, 1 / 5_962),  # exp(-8) / 2, for the paper's s = 4
    }[row]
    found = first_losses(f"unet_multi/{row}", photographs)
    assert [weight for _, weight in found.values()] == pytest.approx(wanted, rel=1e-4)
    for name, (loss, _) in found.items():
        assert sizes[name][0] < loss < sizes[name][1], name


def test_what_unet_multis_weights_do(photographs):
    """At 1 the box is thousands of times the mask and at 1/1000 it is like it, and at 1/100000 the reconstruction is:
    each weight of the paper's table makes a difference."""
    for row, task, low, high in [
        ("mtl_bbox", "box", 2_000, 50_000),
        ("mtl_bbox_1e-3", "box", 2, 50),
        ("mtl_rec", "reconstruction", 0.5, 2),
        ("mtl_rec_learned", "reconstruction", 10, 30),
    ]:
        found = first_losses(f"unet_multi/{row}", photographs)
        (mask, mask_weight), (loss, weight) = found["mask"], found[task]
        assert low < weight * loss / (mask_weight * mask) < high, row


def test_the_weight_that_unet_multi_learned_is_of_a_loss_in_these_units():
    """1/17676 = 1 / (2 sigma^2) at the optimum sigma^2 = loss is a loss between those of the log's 30 epochs."""
    assert 6_168 < 17_676 / 2 < 67_262


@pytest.mark.parametrize(
    ("row", "weight"),
    [("contrastive", 1 / 9), ("contrastive_day", 1 / 9), ("contrastive_equal", 1), ("contrastive_decay", 1 / 9)],
)
def test_gi_tract_contrastive(row, weight, tmp_path):
    """NT-Xent of 16 pairs that the network cannot tell apart is ln 31."""
    root = write_gi_tract(tmp_path, cases=range(1, 24), days=(1,), slices=2, size=(32, 32))
    for number, file in enumerate(sorted(root.rglob("*.png"))):  # the helper's scans are all alike
        Image.fromarray(np.random.default_rng(number).integers(0, 900, (32, 32)).astype(np.uint16)).save(file)
    found = first_losses(f"gi_tract/{row}", root, batch_size=32)
    assert found["organs"][0] == pytest.approx(0.6 * math.log(2) + 0.4 * 0.7, abs=0.3)
    assert found["contrastive"][0] == pytest.approx(math.log(31), abs=0.5)
    assert found["contrastive"][1] == pytest.approx(weight, abs=1e-4)


@pytest.mark.parametrize("row", ["position", "position_day", "position_decay"])
def test_gi_tract_position(row, tmp_path):
    """The square of slice numbers up to 144 has the mean 144^2 / 3 = 6,912: the organs are lost beside it."""
    root = write_gi_tract(tmp_path, cases=(1, 2, 3, 4, 5), days=(1, 2), slices=144, size=(8, 8))
    found = first_losses(f"gi_tract/{row}", root, batch_size=32, max_tiles=0)
    (organs, one), (position, weight) = found["organs"], found["position"]
    assert (one, weight) == (1.0, pytest.approx(1 / 9, abs=1e-4))
    assert position == pytest.approx(6_912, rel=0.5)
    assert weight * position > 400 * organs


@pytest.mark.parametrize("row", ["coat_normal", "coat_auxiliary", "coat_switched"])
def test_switched_auxiliary(row, tmp_path):
    """The paper has no losses; both are binary cross-entropies with weight 1."""
    pytest.importorskip("transformers", reason="extra models is not installed")
    found = first_losses(f"switched_aux/{row}", write_for_recipes("switched_aux", tmp_path))
    assert found.keys() == ({"mask"} if row == "coat_normal" else {"mask", "auxiliary"})
    for loss, weight in found.values():
        assert ENTROPY[0] < loss < ENTROPY[1]
        assert weight == 1.0
