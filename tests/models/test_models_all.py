"""Every model at `tiny`: shapes, gradients, autocast, layout, saving, and four samples learnt by heart."""

import time

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.models import ALL, CORE, OTHERS, SIZE, TRANSFORMERS, batch_of, build, tasks_of, total_loss

from fastmtl import models
from fastmtl.protocols import Batch
from fastmtl.training import checkpoint
from fastmtl.utils.torchvision_guard import make_torchvision_importable


@pytest.fixture(params=ALL)
def name(request):
    info = models.model_info(request.param)
    if info.extra:
        make_torchvision_importable()
        pytest.importorskip("transformers", reason="extra models is not installed")
        pytest.importorskip("timm", reason="extra models is not installed")
        pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    return request.param


def _flat(outputs):
    found = {}
    for name, output in outputs.items():
        if isinstance(output, models.Queries):
            found |= {f"{name}.classes": output.class_logits, f"{name}.masks": output.mask_logits}
        else:
            found[name] = output
    return found


def _same(a, b, **tolerance):
    a, b = _flat(a), _flat(b)
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_every_model_has_a_test():
    assert {*ALL, "big_unet_frozen", "unet_multi_lessdepth"} == set(models.list_models())
    assert set(ALL) == {*CORE, *TRANSFORMERS, *OTHERS}


def test_shapes_and_gradients(name):
    model, tasks, batch = build(name), tasks_of(name), batch_of(2)
    outputs = model(batch)
    for task, output in tasks.items():
        made = outputs[task]
        if output.kind in ("map", "image"):
            assert made.shape == (2, output.channels, SIZE, SIZE)
        elif output.kind == "auxiliary":
            assert made.shape == (2, output.channels, SIZE // 8, SIZE // 8)
        elif output.kind == "queries":
            assert made.class_logits.shape == (2, 6, output.channels + 1)
            assert made.mask_logits.shape == (2, 6, SIZE // 4, SIZE // 4)
            assert all(c.shape == made.class_logits.shape for c, _ in made.auxiliary)
            assert all(m.shape == made.mask_logits.shape for _, m in made.auxiliary)
        else:
            assert made.shape == (2, output.channels)
    total_loss(model, tasks, batch_of(4)).backward()
    without = {key for key, value in model.named_parameters() if value.grad is None}
    # What the libraries' own networks hold and never read, and the auxiliary head that is not in use.
    known = ("swin.layernorm", "stride4", "net._conv_head", "net._bn1")
    assert {key for key in without if not any(part in key for part in known)} == set()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    assert any(value.grad.abs().sum() > 0 for value in model.shared_parameters())


def test_autocast_gives_the_same_to_half_precision(name):
    model, batch = build(name).eval(), batch_of(2)
    with torch.no_grad():
        plain = _flat(model(batch))
        with torch.autocast("cpu", torch.bfloat16):
            low = _flat(model(batch))
    for task, value in plain.items():
        assert low[task].isfinite().all()
        spread = value.std().clamp(min=1e-3)
        assert (low[task].float() - value).abs().mean() < 0.1 * spread + 0.02


def test_four_samples_are_learnt_by_heart(name):
    batch = batch_of(4)
    tasks = tasks_of(name)
    tasks.pop("reconstruction", None)  # seen above; a whole image is much to learn for four channels
    model = build(name, tasks)
    # The losses of a mask and its auxiliary head are of one size: below a quarter of their sum, both are learnt.
    goal = 1 / 4 if set(tasks) == {"mask", "auxiliary"} else 1 / 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2 if name in CORE else 5e-3)
    started, first, best = time.process_time(), None, float("inf")
    for _ in range(60):
        optimizer.zero_grad()
        loss = total_loss(model, tasks, batch)
        loss.backward()
        optimizer.step()
        first, best = first or loss.item(), min(best, loss.item())
        if best < goal * first:
            break
    print(name, time.process_time() - started, first, best)
    assert best < goal * first
    assert time.process_time() - started < 5


def test_save_and_reload_is_bit_equal(name, tmp_path):
    model, batch = build(name), batch_of(2)
    save_checkpoint(tmp_path / "saved", {"model": dict(model.state_dict())})
    other = build(name, seed=9)
    other.load_state_dict(checkpoint.load(tmp_path / "saved")["model"])
    with torch.no_grad():
        _same(other.eval()(batch), model.eval()(batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CORE if name != "resnet50"])
def test_channels_last_is_kept(name):
    model = build(name).to(memory_format=torch.channels_last)
    batch = batch_of(2)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    seen = []
    for decoder in model.decoders.values():
        decoder.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(Batch(images, {}, batch.has_label, batch.metadata))
    assert seen
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in seen)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "backend"), [("joint_unet", "aot_eager"), ("small_unet_film", "eager"), ("unet_multi", "eager")]
)
def test_compiles(name, backend):
    _compiles(name, backend)


@pytest.mark.slow
# Where transformers breaks graphs, Dynamo looks at what it passes on.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", [name for name in ALL if name != "joint_unet"])
def test_compiles_too(name):
    _compiles(name)


def _compiles(name, backend="aot_eager"):
    model, batch, tasks = build(name).eval(), batch_of(4), tasks_of(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    _same(compiled(batch), model(batch), rtol=1e-3, atol=1e-3)
    total_loss(compiled, tasks, batch).backward()
    assert any(value.grad is not None for value in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, at import
def test_inductor():
    _compiles("joint_unet", backend="inductor")
