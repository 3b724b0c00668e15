"""Test-time augmentation: a network that knows no direction sees every view alike; views are turned back exactly."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastmtl.config import ConfigError, load_recipe
from fastmtl.evaluation.tta import Views
from fastmtl.models import Output
from fastmtl.protocols import Batch

VIEWS = ["h", "v", "r90", "r180", "r270"]


def _task(kind, channels):
    return SimpleNamespace(name=kind, output=Output(kind, channels))


class Looks(nn.Module):
    """Exact answers that move with the image: the image, its mean, and where its one bright rectangle lies."""

    def forward(self, batch):
        image = batch.images
        bright = image[:, 0] > 0.5
        boxes = []
        for one in bright:
            rows, columns = one.nonzero().unbind(1)
            low, high = torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()]) + 1
            boxes.append(torch.cat([(low + high) / 2, (high - low).float()]) / one.shape[-1])
        found = torch.stack(boxes).logit()
        coarse = nn.functional.avg_pool2d(image[:, :1], 2)
        return {"map": image[:, :2], "image": image, "auxiliary": coarse, "vector": image.mean((2, 3)), "box": found}


def _batch():
    images = torch.zeros(2, 3, 8, 8)
    images[0, :, 1:3, 2:7] = 1.0
    images[1, :, 4:7, 0:2] = 1.0
    images += 0.3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    return Batch(images, {}, torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("views", [[view] for view in VIEWS] + [VIEWS])
def test_what_moves_with_the_image_is_the_same_in_every_view(views):
    tasks = [_task(*one) for one in (("map", 2), ("image", 3), ("auxiliary", 1), ("vector", 3), ("box", 4))]
    plain, batch = Looks(), _batch()
    found, wanted = Views(plain, tasks, views)(batch), plain(batch)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_it_is_the_mean_of_the_logits():
    class Corner(nn.Module):
        def forward(self, batch):
            return {"vector": batch.images[:, :1, 0, 0]}

    batch = _batch()
    found = Views(Corner(), [_task("vector", 1)], ["h", "v"])(batch)["vector"][:, 0]
    corners = batch.images[:, 0, 0, 0] + batch.images[:, 0, 0, -1] + batch.images[:, 0, -1, 0]
    torch.testing.assert_close(found, corners / 3)


def test_queries_and_unknown_views_are_refused():
    with pytest.raises(ConfigError, match=r"task 'queries' cannot be averaged over views"):
        Views(Looks(), [_task("queries", 2)], ["h"])
    with pytest.raises(ConfigError, match=r"takes the views h, v, .*; got 'left'"):
        Views(Looks(), [_task("map", 1)], ["left"])
    with pytest.raises(ConfigError, match=r"training\.tta must be views among h, v, .*; got \['x'\]"):
        load_recipe("demo", {"training": {"tta": ["x"]}})
