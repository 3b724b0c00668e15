"""Recycled memory: reused when free, never while another object refers to it."""

import weakref

import pytest
import torch

from fastmtl import ops
from fastmtl.ops.core.buffer_cache import WORTHWHILE, Recycled

SIZE = torch.Size([WORTHWHILE // 4])


def _take(recycled):
    return recycled.empty_strided(SIZE, (1,), torch.float32, torch.device("cpu"))


HOLDERS = {
    "the tensor": lambda tensor: tensor,
    "a view": lambda tensor: tensor[3:],
    "a NumPy array": lambda tensor: tensor.numpy(),
    "a memoryview": lambda tensor: memoryview(tensor.numpy()),
    "a DLPack capsule": torch.utils.dlpack.to_dlpack,
    "a storage": lambda tensor: tensor.untyped_storage(),
    "a typed view of it": lambda tensor: tensor.view(torch.int32),
    "an autograd graph": lambda tensor: (torch.ones(SIZE, requires_grad=True) * tensor).grad_fn,
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS.keys())
def test_memory_somebody_holds_is_left_alone(holder):
    recycled = Recycled()
    tensor = _take(recycled)
    place, held = tensor.data_ptr(), holder(tensor)
    del tensor
    other = _take(recycled)
    assert other.data_ptr() != place
    del held


def test_free_memory_comes_again_and_other_shapes_are_fresh():
    recycled = Recycled()
    place = _take(recycled).data_ptr()
    again = _take(recycled)
    assert again.data_ptr() == place
    del again
    other = recycled.empty_strided(SIZE, (1,), torch.int32, torch.device("cpu"))
    assert other.dtype == torch.int32


def test_small_tensors_are_not_kept():
    recycled = Recycled()
    recycled.empty_strided(torch.Size([4]), (1,), torch.float32, torch.device("cpu"))
    assert recycled._last is None


def test_released_memory_is_taken_anew_and_held_memory_stays():
    recycled, busy = Recycled(), Recycled()
    held = _take(busy).fill_(7.0)
    place = weakref.ref(_take(recycled).untyped_storage())
    ops.release_memory()
    assert recycled._last is busy._last is None
    assert place() is None
    assert held[-1].item() == 7.0


def test_gradients_of_two_losses_are_two():
    """The gradient of the second loss must not overwrite that of the first while it is in use."""
    target = torch.zeros(1, 1, 1024, 1024, dtype=torch.uint8)
    first, second = (torch.full((1, 1, 1024, 1024), value, requires_grad=True) for value in (1.0, -1.0))
    ops.dice_bce_loss(first, target, backend="cpp").backward()
    kept = first.grad.clone()
    ops.dice_bce_loss(second, target, backend="cpp").backward()
    assert torch.equal(first.grad, kept)
    assert not torch.equal(first.grad, second.grad)
    J = torch.ones(2, WORTHWHILE // 4)
    sums = [ops.combine(J, torch.tensor([1.0, weight]), backend="cpp") for weight in (1.0, 2.0)]
    assert [total[0].item() for total in sums] == [2.0, 3.0]


def test_a_block_made_under_inference_mode_does_not_reach_autograd():
    J = torch.ones(2, WORTHWHILE // 4)
    w = torch.ones(2)
    with torch.inference_mode():
        ops.combine(J, w, backend="cpp")
    assert not ops.combine(J, w, backend="cpp").is_inference()


def test_a_storage_freed_by_resizing_is_not_handed_out():
    J, w = torch.ones(2, WORTHWHILE // 4), torch.ones(2)
    freed = ops.combine(J, w, backend="cpp")
    freed.untyped_storage().resize_(0)
    del freed
    assert ops.combine(J, w, backend="cpp")[-1].item() == 2.0
