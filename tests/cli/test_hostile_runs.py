"""Damaged and foreign recipes, run folders and checkpoints, full disks and closed pipes: one line and an exit code."""

import errno
import json
import random
import resource
import shutil
import struct
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.runs import sealed, untrained
from helpers.tiles import write_folder
from rich.console import Console
from safetensors.torch import save_file

from fastmtl import config
from fastmtl.builders import components
from fastmtl.cli import main
from fastmtl.training import checkpoint
from fastmtl.training.progress import plain
from fastmtl.training.state_checks import CheckpointError, load_balancer, load_model, load_optimizer, mismatch

VALUES = [
    None,
    "",
    [],
    {},
    -1,
    float("nan"),
    float("inf"),
    "x" * 3000,
    [[]],
    ["a"],
    True,
    2**70,
    "\0",
    [{}],
    {"a": {"b": 1}},
]


def _mutated(value, rng):
    """`value` with something in it replaced by what it should not be."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        return {**value, key: _mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], _mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def _one_line(code, captured):
    assert code in (0, 1)
    if code:
        said = captured.err.strip().splitlines()
        assert said[-1].startswith("fastmtl: ")
        assert len(said[-1]) < 2100
        assert "Traceback" not in captured.err


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiles")
    write_folder(root, {"a": 2, "b": 2})
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiles):
    return untrained(tmp_path_factory.mktemp("runs") / "run", tiles)


@pytest.mark.parametrize("seed", range(4))
def test_recipes_of_any_values_are_told_in_one_line(seed, tmp_path, capsys):
    import tomli_w

    rng = random.Random(seed)
    whole = config.as_dict(config.load_recipe("demo", {"data": {"size": 32}}))
    whole |= {"stages": [{"name": "one", "epochs": 1}], "scales": {"tiny": {"data": {"size": 32}}}}
    for number in range(6):
        damaged = _mutated(whole, rng)
        try:
            text = tomli_w.dumps(damaged) if isinstance(damaged, dict) else str(damaged)
        except TypeError:  # TOML has no null
            continue
        (tmp_path / f"{number}.toml").write_text(text, encoding="utf-8")
        _one_line(main(["train", str(tmp_path / f"{number}.toml"), "--print-config"]), capsys.readouterr())


@pytest.mark.parametrize(
    "text", ["v = " + "[" * 100_000, "v = " + "9" * 5000, "\ufffe", "name = 1\n" * 2, "[tasks]\nx = {}"]
)
def test_recipes_that_no_parser_likes(text, tmp_path, capsys):
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    assert main(["train", str(tmp_path / "r.toml")]) == 1
    _one_line(1, capsys.readouterr())


@pytest.mark.parametrize(
    "file", ["config.toml", "run.json", "checkpoints/best/manifest.json", "checkpoints/best/state.json"]
)
@pytest.mark.parametrize("content", ["", "[" * 100_000, "{}", "[]", "null", '{"a": ' + "9" * 5000 + "}", "\0"])
def test_run_folders_with_a_damaged_file(file, content, run, tiles, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    if file.endswith("state.json"):
        sealed((tmp_path / "run" / file).parent, {"state.json": content.encode()})
    else:
        (tmp_path / "run" / file).write_text(content)
    for command in (["eval", "RUN", "--data", str(tiles)], ["report", "RUN"], ["train", "--resume", "--out", "RUN"]):
        code = main([str(tmp_path / "run") if word == "RUN" else word for word in command])
        _one_line(code, capsys.readouterr())


def test_checkpoints_with_a_damaged_header(run, tiles, tmp_path, capsys):
    rng = random.Random(0)
    best = run / "checkpoints" / "best" / "tensors.safetensors"
    whole = best.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    damaged = [whole[: rng.randrange(len(whole))], b"", struct.pack("<Q", 2**62) + whole[8:], whole[:8] + whole[9:]]
    for _ in range(12):
        some = bytearray(whole)
        some[rng.randrange(size)] = rng.randrange(256)
        damaged.append(bytes(some))
    for number, content in enumerate(damaged):
        other = tmp_path / str(number)
        shutil.copytree(run, other)
        sealed(other / "checkpoints" / "best", {"tensors.safetensors": content})
        _one_line(main(["report", str(other), "--analyse"]), capsys.readouterr())
        with suppress(CheckpointError):  # a byte of a name may change and the file be sound
            checkpoint.load(other / "checkpoints" / "best")


def test_tensors_of_keys_that_read_alike_stay_apart(tmp_path):
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1), 7: torch.tensor(2.0), "7": torch.tensor(3.0)}}
    save_checkpoint(tmp_path / "c", state)
    found = checkpoint.load(tmp_path / "c")
    assert [found["a.b"].item(), *(value.item() for value in found["a"].values())] == [0, 1, 2, 3]


def _stepped(kind, **options):
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_moments_of_another_shape_are_refused_before_the_optimizer_has_them(kind):
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = _stepped(kind, fused=True, **options)
    load_optimizer(optimizer, optimizer.state_dict())
    for name in [name for name in optimizer.state_dict()["state"][0] if name != "step"]:
        for wrong in (torch.zeros(1), torch.zeros(()), torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int64), 1.0):
            state = optimizer.state_dict()
            state["state"][0] = {**state["state"][0], name: wrong}
            with pytest.raises(CheckpointError, match=rf"of parameter 0, \[2, 3\], it has {name}"):
                load_optimizer(optimizer, state)


@pytest.mark.parametrize(
    "change",
    [
        {"param_groups": []},
        {"param_groups": None},
        {"state": {5: {}}},
        {"state": []},
        {"state": {0: {"step": torch.zeros(3)}}},
        {"state": {0: {"step": torch.zeros(())}}},
        {"state": {0: None}},
    ],
)
def test_states_of_other_optimizers_are_refused(change):
    optimizer = _stepped(torch.optim.AdamW)
    with pytest.raises(CheckpointError):
        load_optimizer(optimizer, optimizer.state_dict() | change)


def test_weights_of_another_network_are_refused_by_name():
    model = torch.nn.Linear(3, 2)
    for weights, said in (
        ({"weight": torch.zeros(2, 3)}, "lacks bias"),
        ({**model.state_dict(), "more": torch.zeros(1)}, "has besides more"),
        ({**model.state_dict(), "bias": torch.zeros(1)}, r"bias is float32 \[1\], and the network's is float32 \[2\]"),
        ({**model.state_dict(), "bias": torch.zeros(2).double()}, "bias is float64"),
        ([], "no tensors by name"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_model(model, weights)


def test_a_balancer_of_other_tasks_is_refused():
    from fastmtl import balance

    state = balance.create_balancer("uncertainty").state_dict()
    with pytest.raises(CheckpointError, match="it is of the tasks a, b, and here they are a, c"):
        load_balancer(balance.create_balancer("uncertainty"), state | {"tasks": ["a", "b"]}, ["a", "c"])
    learned = state | {"tasks": ["a", "b"], "learned": torch.zeros(1)}
    with pytest.raises(ValueError, match="a number for each of"):
        load_balancer(balance.create_balancer("uncertainty"), learned, ["a", "b"])
    load_balancer(balance.create_balancer("uncertainty"), learned | {"learned": torch.zeros(2)}, ["a", "b"])


def test_what_differs_in_kind_is_named():
    assert mismatch({"a": [1.0, None]}, {"a": [1, "x"], "b": 2}) == ""
    assert mismatch({"a": {"b": 1}}, {"a": {"b": "x"}}) == "it.a.b is text, and here it is a number"


def test_the_file_of_weights_is_read_at_the_start_alone(tmp_path, tiles, capsys):
    recipe = config.load_recipe("demo", {"model": {"base_channels": 2}, "data": {"size": 32}})
    model = components.build_model(recipe, components.build_tasks(recipe, ["a", "b"]), torch.device("cpu"))
    weights = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    run = untrained(tmp_path / "run", tiles, model={"weights": str(weights)})
    weights.unlink()
    assert main(["eval", str(run), "--data", str(tiles)]) == 0
    assert main(["predict", str(run), str(tiles / "a" / "image"), "--out", str(tmp_path / "out")]) == 0
    other = config.load_recipe(run / "config.toml")
    with pytest.raises(ValueError, match="there is no file"):  # the start still reads it
        components.build_model(other, components.build_tasks(other, ["a", "b"]), torch.device("cpu"))


@pytest.mark.parametrize("text", ["out[/x]", "[red]out", "[bold", ":smile:"])
def test_texts_are_printed_as_they_are(text, tmp_path):
    with (tmp_path / "said").open("w") as file:
        plain(plain(Console(file=file, width=200))).print(f"run folder: {text}")
    assert (tmp_path / "said").read_text() == f"run folder: {text}\n"


def _limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))


@pytest.mark.long
def test_a_disk_that_takes_no_more_is_told_with_the_file(run, tiles, tmp_path):
    command = [sys.executable, "-m", "fastmtl", "predict", str(run), str(tiles), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, preexec_fn=_limited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "predicted_with.json: File too large; raise `ulimit -f`, or choose another place" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_checkpoint_that_cannot_be_written_leaves_nothing(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(checkpoint, "sync", refuse)
    with pytest.raises(CheckpointError, match=r"c cannot be written .* continue with fastmtl train --resume"):
        save_checkpoint(tmp_path / "c", {"a": torch.ones(1)})
    assert not list(tmp_path.iterdir())


def test_errors_of_the_machine_name_file_and_cure(monkeypatch, capsys):
    from fastmtl.cli import doctor

    for error, said in (
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            "/data/x: No space left on device; free space, or choose another place",
        ),
        (MemoryError(), "out of memory; lower"),
        (PermissionError(errno.EACCES, "Permission denied", "y"), "y: Permission denied; change its permissions"),
    ):

        def failing(_arguments, error=error):
            raise error

        monkeypatch.setattr(doctor, "doctor", failing)
        assert main(["doctor"]) == 1
        assert said in capsys.readouterr().err
    for error in (KeyError("x"), TypeError("y")):  # ours: the traceback is wanted
        monkeypatch.setattr(doctor, "doctor", lambda _arguments, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            main(["doctor"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(errno.EPIPE, "x"), 141)])
def test_whoever_stops_gets_no_traceback(error, code, monkeypatch, capsys):
    from fastmtl.cli import doctor

    monkeypatch.setattr(doctor, "doctor", lambda _arguments: (_ for _ in ()).throw(error))
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["doctor"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_facts_of_a_run_have_their_types(run, tmp_path, capsys):
    for key, value in {
        "data": 1,
        "class_names": [1],
        "classes": {"a": 1},
        "training_patients": "P",
        "ranks": 10**9,
    }.items():
        other = tmp_path / key
        shutil.copytree(run, other)
        facts = json.loads((other / "run.json").read_text())
        (other / "run.json").write_text(json.dumps(facts | {key: value}))
        assert main(["eval", str(other), "--data", "nowhere"]) == 1
        assert f"is damaged: '{key}' is not as fastmtl writes it" in capsys.readouterr().err
