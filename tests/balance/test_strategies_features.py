"""The strategy "features": the K backwards stop where `balance.cut` was made."""

from __future__ import annotations

import pytest
import torch
from helpers.loop import CLOSE, Model, check_heads, first_order, flat_gradient, inputs
from torch.utils.checkpoint import checkpoint

from fastmtl import balance, ops


@pytest.mark.parametrize("scale", [None, 64.0])
@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_features_are_gradients_of_the_features(scale, use_reentrant):
    model, x = Model(), inputs()
    balancer = balance.PCGrad().use("features")
    order = first_order(balancer)
    z = model.encoder(x)
    rows = torch.stack(
        [torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in model.losses(x, z).values()]
    )
    w = ops.pcgrad_weights(ops.gram(rows), order)
    expected = torch.autograd.grad(z, list(model.encoder.parameters()), (w @ rows).view_as(z))
    inside = x if use_reentrant is None else x.clone().requires_grad_()
    out = model.encoder(x) if use_reentrant is None else checkpoint(model.encoder, inside, use_reentrant=use_reentrant)
    cut = balance.cut(out)
    log = balancer.backward(model.losses(x, cut), model.encoder.parameters(), features=cut, scale=scale)
    torch.testing.assert_close(log["weights"], w, **CLOSE)
    got, wanted = flat_gradient(model) / (scale or 1.0), torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(got, wanted, **CLOSE)
    if scale is None:
        check_heads(model, x)
    balance.PCGrad().backward(model.losses(x), model.encoder.parameters())
    assert not torch.allclose(flat_gradient(model) - got, wanted, rtol=1e-3)  # approximate: it says so


def test_features_of_micro_batches_stand_side_by_side():
    """The step of a batch in two parts is that of the batch, and several features count together."""
    model, x = Model(), inputs()
    balancer = balance.PCGrad().use("features")
    results = []
    for parts in ([x], x.chunk(2)):
        model.zero_grad()
        balancer = balance.PCGrad().use("features")
        for number, part in enumerate(parts):
            cut = balance.cut(model.encoder(part))
            found = {name: loss / len(parts) for name, loss in model.losses(part, cut).items()}
            log = balancer.backward(found, model.encoder.parameters(), features=[cut], last=number + 1 == len(parts))
        results.append([flat_gradient(model).clone(), *log.values()])
    for whole, split in zip(*results, strict=True):
        torch.testing.assert_close(split, whole, **CLOSE)


def test_errors_about_features():
    model, x = Model(), inputs()
    balancer = balance.PCGrad().use("features")
    for wrong in (None, model.encoder(x), []):
        with pytest.raises(ValueError, match=r"must be made by `balance.cut`"):
            balancer.backward(model.losses(x), model.encoder.parameters(), features=wrong)
    cut = balance.cut(model.encoder(x))
    with pytest.raises(ValueError, match=r"`losses\['a'\]` must reach"):
        balancer.backward(model.losses(x), model.encoder.parameters(), features=cut)
    with pytest.raises(ValueError, match="requires the strategy 'features'"):
        balance.PCGrad().backward(model.losses(x, cut), model.encoder.parameters(), features=cut)
    with pytest.raises(ValueError, match="have a graph"):
        balance.cut(x)
