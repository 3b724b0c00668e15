"""A training goes on on other numbers of ranks: the losses and weights of the uninterrupted one, to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import elastic_ranks
from helpers.elastic_ranks import EPOCHS, GLOBAL, part
from helpers.tiles import write_folder

from fastmtl.api.job import share_of_batch
from fastmtl.config import OptimizerConfig, load_recipe
from fastmtl.distributed import World
from fastmtl.trainer import OtherRanks
from fastmtl.training.lr_schedule import Schedule
from fastmtl.utils.words import counted

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")


def _check(folder: Path, plan: list[tuple[int, int]], balancers: tuple[str, ...]) -> dict[str, dict]:
    found = elastic_ranks.run(folder, plan, balancers)
    for name in balancers:
        whole = part(World(), folder / "tiles", name, 0, None)
        assert len(found[name]["losses"]) == len(whole["losses"]) == 3 * EPOCHS + EPOCHS
        for one, other in zip(found[name]["losses"], whole["losses"], strict=True):
            assert one == {key: pytest.approx(value, rel=1e-10, abs=0) for key, value in other.items()}
        for key, value in whole["weights"].items():
            torch.testing.assert_close(found[name]["weights"][key], value, rtol=1e-9, atol=1e-11)
        first, *others = found[name]["notes"]
        assert first == ()
        for (before, _), (now, _), notes in zip(plan, plan[1:], others, strict=False):
            (note,) = notes
            assert note.startswith(
                f"continues on {counted(now, 'rank')} what {counted(before, 'rank')} began: not bit-equal"
            )
    return found


@pytest.mark.slow
def test_two_ranks_then_one_then_two(tmp_path):
    """Stopped within epochs of which the last batch does not divide."""
    _check(tmp_path, [(2, 2), (1, 3), (2, 0)], ("pcgrad", "db_mtl"))


@pytest.mark.slow
def test_four_ranks_then_two_then_three(tmp_path):
    balancers = ("pcgrad", "moco", "uncertainty", "famo", "graddrop", "gradnorm")
    balancers += ("excess_mtl", "go4align", "modo", "momentum_config", "stch")
    found = _check(tmp_path, [(4, 1), (2, 3), (3, 0)], balancers)
    alone = elastic_ranks.with_few_tiles(World(), tmp_path / "tiles")  # on three ranks one has none of them
    assert found["few"]["step"] == alone["step"] == EPOCHS
    assert found["few"]["loss"] == pytest.approx(alone["loss"], rel=1e-10)
    assert found["few"]["validation"]["num_images"] == 1
    assert found["few"]["validation"]["score"] == pytest.approx(alone["validation"]["score"], rel=1e-6)


def test_other_batches_continue_the_epoch_and_the_schedule(tmp_path):
    """12 images of 29 in steps of 12, and the rest in steps of 4."""
    write_folder(tmp_path / "tiles", elastic_ranks.COUNTS)
    state = tmp_path / "state"
    first = part(World(), tmp_path / "tiles", "linear", 1, state)
    second = part(World(), tmp_path / "tiles", "linear", 0, state, size=4)
    assert first["losses"][0]["batch"] == (1, 3)
    assert [one["batch"] for one in second["losses"] if "batch" in one][:5] == [(n, 6) for n in range(2, 7)]
    assert [one["step"] for one in second["losses"] if "epoch" in one] == [6, 14, 22]  # 17 = 4 * 4 + 1; 29 = 7 * 4 + 1
    (note,) = second["notes"]
    assert note.startswith(f"a batch of all ranks has 4 images from here on, {GLOBAL} before")


def test_the_schedule_goes_on_from_the_same_fraction():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)

    def steps(schedule: Schedule, number: int) -> float:
        for _ in range(number):
            optimizer.step()
            schedule.step()
        return optimizer.param_groups[0]["lr"]

    schedule = Schedule(optimizer, OptimizerConfig(warmup=0.0), 100)
    rate = steps(schedule, 25)
    finer = Schedule(optimizer, OptimizerConfig(warmup=0.0), 400)
    finer.load_state_dict(schedule.state_dict())
    finer.rescale(4)
    assert steps(finer, 1) == pytest.approx(rate, rel=0.01)
    assert steps(finer, 299) == pytest.approx(0, abs=1e-9)


def test_the_batch_of_all_ranks_stays():
    recipe = load_recipe("demo", {"data": {"batch_size": 6}})
    assert share_of_batch(recipe, 4, 3) == 8
    assert share_of_batch(recipe, 4, 4) == 6
    with pytest.raises(OtherRanks, match=r"24 images in each step, .* and 24 is not divisible by 5;"):
        share_of_batch(recipe, 4, 5)
    pairs = load_recipe("demo", {"data": {"batch_size": 6, "sampler": "pairs"}})
    with pytest.raises(OtherRanks, match=r"one of these numbers of ranks: 1, 2, 3, 6\.$"):
        share_of_batch(pairs, 2, 4)
    with pytest.raises(OtherRanks, match="1, 2, 3, 6, 9"):  # lists no endless numbers
        share_of_batch(recipe, 3**20, 7)
