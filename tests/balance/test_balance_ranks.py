"""Two gloo ranks in float64 equal one process on the whole batch, for every method."""

from __future__ import annotations

import pytest
import torch
from helpers import two_ranks
from torch import nn
from torch.multiprocessing.spawn import spawn

from fastmtl import balance
from fastmtl.balance.join_ranks import METHODS

pytestmark = pytest.mark.long

# A few Newton or secant steps stand between G and w: rounding is magnified. The learned numbers are float32.
LOOSE = {"uncertainty": 1e-6, "imtl_l": 1e-6}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, dict]]:
    """The results of both ranks; one pair of processes runs all cases of this file."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(two_ranks.main, args=(str(folder / "rendezvous"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def difference(case: dict) -> float:
    """The largest difference, relative to the largest number of its kind."""
    largest = 0.0
    for name, ours in case["ours"].items():
        alone = case["alone"][name]
        assert ours.shape == alone.shape, name
        largest = max(largest, ((ours - alone).abs().max() / alone.abs().max().clamp(min=1e-30)).item())
    return largest


def check(results, name: str, tolerance: float = 1e-12) -> None:
    for rank in results:
        assert difference(rank[name]) < tolerance
    ours = [rank[name]["ours"] for rank in results]
    assert all(torch.equal(ours[0][key], ours[1][key]) for key in ours[0]), "the ranks differ"


@pytest.mark.parametrize(("name", "path"), two_ranks.PATHS)
def test_equals_one_process(results, name, path):
    """Over several steps, under a loss scale, with unequal counts of labels and a task without any on one rank."""
    check(results, f"{name}-{path}", LOOSE.get(name, 1e-12))


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "cagrad"])
@pytest.mark.parametrize("how", ["batched", "features", "features-micro", "last_layer", "reuse"])
def test_strategies_equal_one_process(results, name, how):
    check(results, f"{name}-{how}")


@pytest.mark.parametrize("case", ["mgda-loss", "sdmgrad-micro-all_reduce"])
def test_losses_and_micro_batches_count_over_all_ranks(results, case):
    check(results, case)


@pytest.mark.parametrize("method", METHODS)
def test_overlap_changes_no_bit(results, method):
    assert all(difference(rank[f"overlap-{method}"]) == 0 for rank in results)


@pytest.mark.parametrize("name", two_ranks.RESUMED)
def test_resume(results, name):
    """Bit for bit; each rank loads its own state."""
    assert all(difference(rank[f"resume-{name}"]) == 0 for rank in results)


@pytest.mark.parametrize("name", two_ranks.SHARDED)
def test_fsdp2(results, name):
    check(results, f"fsdp-{name}", LOOSE.get(name, 1e-12))


@pytest.mark.parametrize("given", ["ddp", "ddp-inside"])
def test_a_model_in_distributed_data_parallel(results, given):
    """The wrapper's own averaging is off; the forward pass goes through the wrapper."""
    check(results, given)


def test_gradients_from_before_the_step_are_added_to(results):
    """Parameters that no rank reached keep None."""
    check(results, "earlier")
    assert results[0]["earlier"]["ours"]["missing"].sum() == 2


def test_the_fused_step(results):
    check(results, "fused")


def test_a_loss_that_is_no_number_on_one_rank_is_none_on_any(results):
    """All ranks then skip the step, and no state changes."""
    for rank in results:
        assert not rank["spoilt"]["bad"].isfinite().any()
        assert rank["spoilt"]["good"].isfinite().all()
    assert torch.equal(*(rank["spoilt"]["good"] for rank in results))


def test_traffic(results):
    """Numbers passed to collectives for P shared parameters and K tasks; an all-reduce sends each of them twice."""
    K = 3
    for rank in results:
        scattered, reduced = (rank["traffic"][method] for method in METHODS)
        P, gram = scattered["P"], K * K
        assert scattered["reduce_scatter"] == K * P
        assert scattered["all_gather"] == P
        assert reduced["all_reduce"] == K * P + scattered["all_reduce"] - gram
        assert scattered["all_reduce"] < 100  # heads, losses, Gram matrix, flags


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("seed", "same options and state on all ranks"),
        ("model", "parameter 'encoder.0.bias' differs"),
        ("batched fsdp", "under FSDP2; got 'batched'"),
        ("use fsdp", "under FSDP2"),
        ("placements", "over one mesh of one dimension, or of two (copies, shards: HSDP); got "),
        ("gradnorm fsdp", "FSDP2 hides"),
        ("whole", "must hold FSDP2's sharded parameters"),
        ("static graph", "Wrap the model without static_graph"),
        ("new", "has a gradient that no rank had"),
    ],
)
def test_errors(results, case, message):
    for rank in results:
        assert message in rank["errors"][case]


@pytest.mark.parametrize("case", [*balance.list_balancers(), "wrapped", "copy", "fused"])
def test_a_balancer_that_was_not_distributed_says_so(results, case):
    """Otherwise the models of the ranks would diverge without an error."""
    for rank in results:
        assert "there are 2 ranks and this balancer was not distributed" in rank["undistributed"][case]
        assert "balancer.distribute(model)" in rank["undistributed"][case]


@pytest.mark.parametrize("case", ["alone", "alone again", "copy alone", "fused alone"])
def test_each_rank_may_work_alone_where_that_is_meant(results, case):
    assert [rank["undistributed"][case] for rank in results] == ["", ""]


def test_who_averages_besides_the_balancer_is_named(results):
    for rank in results:
        assert "would average its gradients too" in rank["undistributed"]["wrapped after"]
        assert "Call balancer.distribute(model) after wrapping" in rank["undistributed"]["marked twice"]


def test_errors_without_ranks():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="`method` must be one of"):
        balance.PCGrad().distribute(model, method="gather")
    with pytest.raises(ValueError, match="init_process_group"):
        balance.PCGrad().distribute(model)
    with pytest.raises(ValueError, match=r"`counts` must be \[1\]"):
        balance.global_losses({"a": torch.ones(())}, torch.ones(2))
