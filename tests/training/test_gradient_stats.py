"""Looking at the tasks' gradients changes nothing, and sees what autograd sees."""

import pytest
import torch
from helpers.memory_loader import MemoryLoader
from helpers.stages import recipe_of, run, same, weights

from fastmtl.training.gradient_stats import watch


class Looks:
    def __init__(self):
        self.seen = []

    def on_step(self, step, epoch, batch, num_batches, record):
        self.seen.append((step, record["balance"]))

    def on_epoch(self, record):
        pass


def _losses():
    shared = [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[3.0]]))]
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    x, y = shared
    return {"a": 2 * x.sum(), "b": (x * torch.tensor([1.0, -1.0])).sum() + 3 * y.sum(), "c": 0 * x.sum()}, [
        *shared,
        frozen,
    ]


def test_cosines_are_those_of_the_gradients():
    losses, shared = _losses()
    found = watch(losses, shared)
    rows = torch.tensor([[2.0, 2.0, 0.0], [1.0, -1.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(found["norms"], rows.norm(dim=1))
    wanted = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    assert torch.allclose(found["cosines"], wanted)
    assert all(parameter.grad is None for parameter in shared)
    sum(losses.values()).backward()  # the graphs are whole


def test_a_loss_scale_is_taken_out_again():
    losses, shared = _losses()
    scaled = watch(losses, shared, torch.amp.GradScaler("cpu", init_scale=1024.0))
    plain = watch(losses, shared)
    assert all(torch.allclose(scaled[name], plain[name]) for name in plain)


def test_a_task_alone_has_nothing_to_compare():
    losses, shared = _losses()
    assert watch({"a": losses["a"]}, shared) == {}


@pytest.mark.long
@pytest.mark.parametrize("balancer", ["linear", "famo", "pcgrad"])
def test_the_weights_are_those_of_a_run_that_was_not_watched(tmp_path, balancer):
    table = {"name": balancer}
    seen = {}
    for every in (0, 3):
        folder = tmp_path / str(every)
        folder.mkdir()
        looks = Looks()
        recipe = recipe_of(folder, balancer=table, training={"log_every": 2, "gradient_stats_every": every})
        seen[every] = (weights(run(recipe, folder, [looks]).model), looks.seen)
    assert same(seen[0][0], seen[3][0])
    seen_at = {every: [step for step, balance in looks if "cosines" in balance] for every, (_, looks) in seen.items()}
    every_look = [step for step, _ in seen[3][1]]
    fourth = list(range(4, 2 * len(MemoryLoader()) + 1, 4))  # 3, rounded up to steps that are looked at
    assert fourth
    itself = every_look if balancer == "pcgrad" else None
    assert seen_at == {0: itself or [], 3: itself or fourth}
