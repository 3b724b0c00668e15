"""Names, options, bad uses in one clear line, own models, weights from files, and who needs torchvision."""

import importlib.metadata
import importlib.util
import json
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from helpers.models import CORE, TRANSFORMERS, build
from torch import nn

from fastmtl import cli, models
from fastmtl.models import Output, registry
from fastmtl.models import weights as weights_module
from fastmtl.utils import optional_imports

MASK = {"mask": Output("map", 1)}
BOTH = MASK | {"grade": Output("vector", 4)}


@pytest.fixture
def own_name():
    yield "own_test_model"
    registry._MODELS.pop("own_test_model", None)


class Own(nn.Module):
    def __init__(self, tasks, *, width=4):
        super().__init__()
        self.convs = nn.ModuleDict({name: nn.Conv2d(3, output.channels, 1) for name, output in tasks.items()})

    def forward(self, batch):
        images = batch if isinstance(batch, torch.Tensor) else batch.images
        return {name: conv(images) for name, conv in self.convs.items()}

    def shared_parameters(self):
        return self.parameters()


def test_own_models_by_decorator(own_name):
    assert models.register_model(own_name)(Own) is Own
    assert own_name in models.list_models()
    assert models.create_model(own_name, MASK, width=2)(torch.zeros(1, 3, 4, 4))["mask"].shape == (1, 1, 4, 4)
    assert models.create_model(own_name, MASK, width=100_000)  # what a width is there, its author knows
    with pytest.raises(ValueError, match="has no preset 'tiny'"):
        models.create_model(own_name, MASK, preset="tiny")
    with pytest.raises(TypeError, match=r"must have a method shared_parameters\(\); Linear has none"):
        models.register_model(own_name)(nn.Linear)


def test_packages_models_by_entry_point(own_name, monkeypatch):
    good = importlib.metadata.EntryPoint(own_name, f"{__name__}:Own", registry.ENTRY_POINTS)
    broken = importlib.metadata.EntryPoint("broken", "no_such_package_here:Model", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken, good])
    registry._load_entry_points.cache_clear()
    with pytest.warns(UserWarning, match="model 'broken' of package no_such_package_here:Model cannot be loaded"):
        model = models.create_model(own_name, MASK)
    assert isinstance(model, Own)
    registry._load_entry_points.cache_clear()


@pytest.mark.parametrize(
    ("name", "tasks", "options", "message"),
    [
        ("smal_unet", MASK, {}, "unknown model 'smal_unet'; did you mean 'small_unet'"),
        ("joint_unet", MASK, {"base_chanels": 4}, "did you mean 'base_channels'"),
        ("joint_unet", MASK, {"base_channels": "4"}, "cannot be built with"),
        ("joint_unet", MASK, {"preset": "small"}, "`preset` of model 'joint_unet' must be one of full, tiny"),
        ("joint_unet", {}, {}, "`tasks` of 'joint_unet' is empty"),
        ("joint_unet", {"mask": Output("maps", 1)}, {}, "must request one of map, vector"),
        ("joint_unet", {"mask": Output("map", 0)}, {}, "at least one channel"),
        ("joint_unet", {"box": Output("box", 5)}, {}, "'box' has 4 channels"),
        ("joint_unet", {"a.b": Output("map", 1)}, {}, "is not a valid module name"),
        ("joint_unet", {"m": Output("queries", 1)}, {}, "task 'm' requests 'queries'"),
        ("joint_unet", MASK, {"encoder": "vgg"}, "must be 'basic_block' or 'resnet34'; got 'vgg'"),
        ("segformer_daformer", MASK, {"encoder": "mit_b9"}, "`encoder` of segformer_daformer must be one of coat_lite"),
        ("resnet50", MASK, {}, "supports box, embedding, momentum_embedding, vector; task 'mask' requests 'map'"),
        ("small_unet", MASK, {"levels": 1}, "`levels` of small_unet must be 2 to 7"),
        ("big_unet", MASK, {"frozen_stages": 5}, "must be 0 to 4; got 5"),
        (
            "joint_unet",
            MASK,
            {"base_channels": 0},
            "`base_channels` of model 'joint_unet' must be whole, 1 to 16384; got 0",
        ),
        ("joint_unet", MASK, {"base_channels": -4}, "`base_channels`"),
        ("joint_unet", MASK, {"base_channels": 2.5}, "`base_channels`"),
        ("joint_unet", MASK, {"base_channels": 10**7}, "`base_channels`"),
        ("joint_unet_resnet34", MASK, {"depth": -1.0}, "`depth`"),
        ("joint_unet_resnet34", MASK, {"depth": 1e9}, "`depth`"),
        ("joint_unet", BOTH, {"head_grid": -1}, "`head_grid`"),
        ("resnet50", {"grade": Output("vector", 4)}, {"width": float("nan")}, "`width` .* above 0"),
        ("resnet50", {"grade": Output("vector", 4)}, {"dropout": 1.5}, "`dropout` .* probability"),
        ("joint_unet", ["mask"], {}, "must map names to Output"),
        ("joint_unet", {"mask": "map"}, {}, "must map names to Output"),
        ("joint_unet", {"training": Output("map", 1)}, {}, "is not a valid module name"),
        ("joint_unet", {3: Output("map", 1)}, {}, "is not a valid module name"),
    ],
)
def test_bad_uses_are_one_line(name, tasks, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.create_model(name, tasks, **options)
    assert "\n" not in str(caught.value)


def test_images_of_whole_numbers_and_of_no_size():
    model = models.create_model("joint_unet", BOTH, preset="tiny")
    with pytest.raises(ValueError, match=r"needs normalised images of a floating type; got torch.uint8"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"multiples of 16; got \[1, 3, 0, 32\]"):
        model(torch.zeros(1, 3, 0, 32))


@pytest.mark.parametrize("name", ["efficientnet_b0", "unet"])
def test_models_of_libraries_can_be_pickled(name):
    if not importlib.util.find_spec("segmentation_models_pytorch"):
        pytest.skip("extra models is not installed")
    model = build(name).eval()
    again = pickle.loads(pickle.dumps(model))
    images = torch.zeros(1, 3, 64, 64)
    for key, value in model(images).items():
        assert torch.equal(again(images)[key], value)


@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_images_that_the_encoder_cannot_take(shape):
    model = models.create_model("joint_unet", BOTH, preset="tiny")
    with pytest.raises(ValueError, match=r"joint_unet needs images .*; got \[" + ", ".join(map(str, shape))):
        model(torch.zeros(shape))


def test_a_missing_extra_is_named_with_its_command(monkeypatch, capsys):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(optional_imports.importlib, "import_module", missing)
    for name, package in (("mask2tasks", "transformers"), ("coat_daformer", "timm"), ("unet", "segmentation_models")):
        tasks = next(iter(models.model_info(name).rows.values())).tasks
        with pytest.raises(
            ImportError, match=rf"needs {package}\w*; install it with: pip install 'fastmtl-engine\[models\]'"
        ):
            models.create_model(name, tasks)


@pytest.mark.long
def test_core_and_transformers_models_need_no_torchvision():
    script = (
        "import sys; sys.modules['torchvision'] = None; sys.path.insert(0, 'tests')\n"
        "import torch; torch.set_num_threads(1)\n"
        "from helpers.models import batch_of, build\n"
        "for name in sys.argv[1:]: build(name)(batch_of(2))\n"
        "assert sys.modules['torchvision'] is None\n"
    )
    names = list(CORE)
    if importlib.util.find_spec("transformers"):
        names += TRANSFORMERS
    subprocess.run([sys.executable, "-c", script, *names], check=True, timeout=300)


def _save(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file = pytest.importorskip("safetensors.torch", reason="extra train is not installed").save_file
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_the_same_model(tmp_path, suffix):
    source = build("joint_unet", BOTH, seed=3)
    model = build("joint_unet", BOTH, weights=_save(tmp_path, source.state_dict(), suffix))
    for key, value in source.named_parameters():
        assert torch.equal(model.get_parameter(key), value)


def test_weights_of_another_head_load_whole_parts_and_say_what_is_left(tmp_path, caplog):
    source = build("joint_unet", BOTH, seed=3)
    model = build("joint_unet", MASK | {"grade": Output("vector", 7)})
    before = model.heads["grade"].hidden.weight.clone()
    with caplog.at_level(logging.WARNING):
        report = models.load_weights(model, _save(tmp_path, source.state_dict(), ".pt"))
    assert report.loaded == ["encoder", "decoders.mask"]
    assert report.wrong_shape == [
        "heads.grade.out.weight [4, 16] for [7, 16]",
        "heads.grade.out.bias [4] for [7]",
    ]
    assert torch.equal(model.heads["grade"].hidden.weight, before)
    assert "heads.grade.out.weight" in caplog.text


def test_weights_of_torchvision_fit_the_encoder(tmp_path):
    source = build("resnet50", {"label": Output("vector", 3)}, seed=4)
    source.encoder.bn1.num_batches_tracked.fill_(7)
    foreign = dict(source.encoder.state_dict()) | {"fc.weight": torch.zeros(9, 256), "fc.bias": torch.zeros(9)}
    path = tmp_path / "resnet50.pth"
    torch.save(foreign, path)
    model = build("resnet50", {"label": Output("vector", 3)})
    report = models.load_weights(model, path)
    assert report.loaded == ["encoder"]
    assert report.unused == ["encoder.fc.weight", "encoder.fc.bias"]  # no counts of batches, which are loaded too
    assert model.encoder.bn1.num_batches_tracked == 7
    assert torch.equal(model.encoder.layer2[0].conv1.weight, source.encoder.layer2[0].conv1.weight)


def test_weights_of_transformers_older_names_and_of_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="extra models is not installed")
    source = build("swin_t", seed=5)
    older = {
        key.replace("q_proj", "self.query").replace("k_proj", "self.key").replace("v_proj", "self.value"): value
        for key, value in source.encoder.net.state_dict().items()
    }
    older = {key.replace("attention.o_proj", "attention.output.dense"): value for key, value in older.items()}
    path = _save(tmp_path, older, ".safetensors")
    hub = pytest.importorskip("huggingface_hub", reason="extra models is not installed")
    asked = []
    monkeypatch.setattr(hub, "file_exists", lambda name, file: file == "model.safetensors")
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file: asked.append((name, file)) or str(path))
    model = build("swin_t", weights="someone/swin")
    assert asked == [("someone/swin", "model.safetensors")]
    for key, value in source.encoder.named_parameters():
        assert torch.equal(model.encoder.get_parameter(key), value), key


def test_bad_weights_are_one_line(tmp_path, monkeypatch):
    other = _save(tmp_path, build("small_unet", MASK).state_dict(), ".pt")
    text = tmp_path / "weights.bin"
    text.write_text("hello")
    broken = tmp_path / "weights.safetensors"
    broken.write_text("hello")
    empty = tmp_path / "empty.pt"
    torch.save({"epoch": 3}, empty)

    def offline(name, file):
        raise OSError("no network")

    hub = weights_module.require("huggingface_hub", "test")
    monkeypatch.setattr(hub, "file_exists", offline)  # nothing is downloaded: that would try for 20 seconds
    monkeypatch.setattr(hub, "hf_hub_download", None)
    for source, message in (
        (other, r"of another architecture than this joint_unet: .*: loaded nothing; \d+ missing \(encoder\."),
        (tmp_path / "none.pt", "there is no file"),
        (text, "cannot be read as safetensors or a torch state dict"),
        (broken, "cannot be read as safetensors"),
        (empty, "holds no state dict"),
        ("someone/nothing", "cannot be downloaded from the Hugging Face hub: no network"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            models.create_model("joint_unet", MASK, preset="tiny", weights=source)
        assert "\n" not in str(caught.value)


def test_hub_weights_without_a_network_are_the_downloaded_ones(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="extra models is not installed")
    source = build("joint_unet", MASK, seed=3)
    cached = {"pytorch_model.bin": str(_save(tmp_path, source.state_dict(), ".pt"))}

    def offline(name, file):
        raise OSError("no network")

    monkeypatch.setattr(hub, "file_exists", offline)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: cached.get(file))
    model = build("joint_unet", MASK, weights="someone/nothing")
    assert torch.equal(model.encoder.stages[0].conv1.weight, source.encoder.stages[0].conv1.weight)
    monkeypatch.setattr(hub, "file_exists", lambda name, file: False)
    with pytest.raises(ValueError, match="no such public repository, or the repository lacks"):
        build("joint_unet", MASK, weights="someone/nothing")


def test_fastmtl_models_as_table_and_json(capsys):
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in rows} == set(models.list_models())
    mask2tasks = next(row for row in rows if row["model"] == "mask2tasks")
    assert mask2tasks["strides"] == [4, 8, 16, 32]
    assert mask2tasks["parameters"] == 47_633_667
    assert mask2tasks["install"] == "fastmtl-engine[models]"
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "47.63 M" in shown
    assert "fastmtl-engine[" in shown
