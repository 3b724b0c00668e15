"""What a model's encoder returns for a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def encoder_outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """The tensors that `encoder` returns in one evaluation of `batch`; the model's mode is restored.

    Gradients are recorded unless the caller turns them off.

    Args:
        model: on the device of `batch`, with `parts["encoder"]`.
        batch: what the model's forward takes.
    """
    found: list[Any] = []
    encoder: nn.Module = model.parts["encoder"]  # type: ignore[index]  # a dict of modules
    hook = encoder.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    training = model.training
    try:
        model.eval()(batch)
    finally:
        hook.remove()
        model.train(training)
    given = getattr(found[0], "feature_maps", found[0]) if found else ()
    return [one for one in ([given] if isinstance(given, Tensor) else given) if isinstance(one, Tensor)]
