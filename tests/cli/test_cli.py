"""The command line as a person meets it: runs, run folders, and one clear line for every mistake."""

import json
import re
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from fastmtl import data
from fastmtl.cli import main
from fastmtl.training import checkpoint
from fastmtl.training.checkpoint_names import history, located

SMALL = ["--epochs", "1", "--size", "32", "--batch-size", "4", "--set", "model.base_channels=4"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A small synthetic data set: 6 patients, 4 tiles each."""
    root = tmp_path_factory.mktemp("data") / "colon"
    return data.generate(root, num_patients=6, tiles_per_patient=4, tile_size=64, num_slides=0)


@pytest.fixture(scope="module")
def run(tiles, tmp_path_factory):
    """A trained run folder."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", "demo", "--data", str(tiles), "--out", str(out), *SMALL]) == 0
    return out


def _says(capsys, arguments, code=1):
    """The one line that `arguments` print to standard error."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("fastmtl: ")
    assert "Traceback" not in captured.err
    return lines[-1]


@pytest.mark.long
def test_a_run_folder_holds_everything(run, tiles):
    names = {path.name for path in run.iterdir()}
    wanted = {"config.toml", "environment.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints"}
    assert wanted | {"tensorboard", "balance.jsonl", "evaluation.jsonl", "tiles"} <= names
    assert tomllib.loads((run / "config.toml").read_text())["training"]["epochs"] == 1
    (record,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert set(record["loss"]) == {"segmentation", "classification"}
    summary = json.loads((run / "summary.json").read_text())
    assert 0 <= summary["tasks"]["segmentation"]["dice"] <= 1
    assert set(summary["tasks"]["classification"]["per_class"]) == {"Adenocarcinoma", "Normal", "Polyp"}
    assert [one.path.name for one in history(run / "checkpoints")] == ["step-00000000", "step-00000004-2"]
    images = [json.loads(line)["tasks"] for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert len(images) == summary["num_images"]
    dice = sum(image["segmentation"]["dice"] for image in images) / len(images)
    assert dice == pytest.approx(summary["tasks"]["segmentation"]["dice"], abs=1e-6)
    page = (run / "report.html").read_text()
    assert not re.search("https?:", page), "the report must be self-contained"
    facts = json.loads((run / "run.json").read_text())
    assert not set(facts["training_patients"]) & set(facts["validation_patients"])
    assert facts["validation_images"] == len(images)
    assert facts["training_images"] + len(images) == 24
    assert facts["precision"] in ("float32", "bfloat16")
    processor = json.loads((run / "environment.json").read_text())["processor"]
    for said in (f"{facts['training_images']} to train, {len(images)} held out", processor, facts["precision"]):
        assert said in page


def test_eval_prints_the_summary_and_leaves_training_patients_out(run, tiles, capsys):
    assert main(["eval", str(run), "--data", str(tiles)]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())
    assert found["tasks"] == summary["tasks"]
    assert found["num_images"] + found["num_images_of_training_patients_left_out"] == 24
    assert main(["eval", str(run), "--data", str(tiles), "--everything", "--checkpoint", "last"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 24


@pytest.mark.long
def test_a_recipe_may_be_judged_by_its_last_weights(tiles, tmp_path, capsys):
    out = tmp_path / "run"
    options = [*SMALL, "--epochs", "3", "--set", "training.checkpoint=last", "--set", "training.average=ema"]
    # A rate that makes the average, which trails behind, another model than the weights.
    assert main(["train", "demo", "--data", str(tiles), "--out", str(out), *options, "--set", "optimizer.lr=0.05"]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["checkpoint"] == "last"
    assert summary["score"] == pytest.approx(records[-1]["validation"]["score"], abs=1e-6)
    assert "with the weights of the last epoch" in (out / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(tiles)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["checkpoint"], found["tasks"]) == ("last", summary["tasks"])
    assert main(["eval", str(out), "--data", str(tiles), "--checkpoint", "best"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == "best"


def test_predict_writes_masks_of_the_images_size_and_a_line_each(run, tiles, tmp_path, capsys):
    from PIL import Image

    assert main(["predict", str(run), str(tiles / "Polyp" / "image"), "--out", str(tmp_path / "p")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "p" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(list((tiles / "Polyp" / "image").iterdir()))
    with Image.open(tmp_path / "p" / lines[0]["segmentation"]["mask"]) as mask:
        assert mask.size == (64, 64)
        assert set(mask.tobytes()) <= {0, 255}
    probabilities = lines[0]["classification"]["probabilities"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert lines[0]["classification"]["class"] == max(probabilities, key=probabilities.get)


@pytest.mark.slow
def test_stop_and_resume_ends_where_an_uninterrupted_run_ends(tiles, tmp_path):
    """SIGTERM in mid-training, then --resume: the weights and metrics are those of a run that was left alone."""
    options = [*SMALL, "--epochs", "3", "--log-every", "1", "--data", str(tiles)]
    assert main(["train", "demo", "--out", str(tmp_path / "whole"), *options]) == 0
    command = [sys.executable, "-m", "fastmtl", "train", "demo", "--out", str(tmp_path / "cut"), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if (tmp_path / "cut" / "metrics.jsonl").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = ""
    with process.stderr as lines:
        for line in lines:
            said += line
            if "continue with" in line:
                process.send_signal(signal.SIGTERM)  # again, while Python ends
    assert process.wait(timeout=60) == 75, said
    assert f"continue with: fastmtl train --resume --out {tmp_path / 'cut'}" in said
    assert main(command[3:]) == 0, "the same command continues it"
    assert main(["train", "demo", "--resume", "--out", str(tmp_path / "cut")]) == 0, "a finished run stays as it is"
    assert main(["train", "--resume", "--out", str(tmp_path / "cut"), "--batch-size", "9"]) == 1
    whole, cut = (checkpoint.load(tmp_path / name / "checkpoints" / "last") for name in ("whole", "cut"))
    assert all(value.equal(cut["model"][name]) for name, value in whole["model"].items())
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_predict_passes_masks_over_and_does_not_mix_two_predictions(run, tiles, tmp_path, capsys):
    assert main(["predict", str(run), str(tiles), "--out", str(tmp_path / "p")]) == 0
    assert "24 images" in capsys.readouterr().err
    again = ["predict", str(run), str(tiles), "--out", str(tmp_path / "p")]
    assert "already holds predictions with other views" in _says(capsys, [*again, "--tta", "h"])
    assert "with other input" in _says(
        capsys, ["predict", str(run), str(tiles / "Polyp"), "--out", str(tmp_path / "p")]
    )
    lines = (tmp_path / "p" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "p" / "predictions.jsonl").write_text("".join(lines[:20]) + lines[20][:30])  # cut off while writing
    assert main(again) == 0
    assert "4 images, 20 were there already" in capsys.readouterr().err
    assert sorted((tmp_path / "p" / "predictions.jsonl").read_text().splitlines(keepends=True)) == sorted(lines)
    (tmp_path / "p" / "predicted_with.json").unlink()
    assert "without predicted_with.json" in _says(capsys, again)


def test_predicted_masks_lie_as_the_image_is_shown(run, tmp_path):
    """A photo that its EXIF tag turns by 90 degrees has a mask that is turned too."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.new("RGB", (48, 32), "pink").save(tmp_path / "in" / "turned.jpg", exif=exif)
    assert main(["predict", str(run), str(tmp_path / "in"), "--out", str(tmp_path / "p")]) == 0
    with Image.open(tmp_path / "p" / "segmentation" / "turned.png") as mask:
        assert mask.size == (32, 48)


def test_recipes_doctor_version_and_help(capsys):
    assert main(["recipes"]) == 0
    assert "ebhi_joint_unet" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    backends = json.loads(capsys.readouterr().out)["backends"]
    assert backends["dice_bce"]["reference"] == "ready"
    assert {"gram", "combine", "pcgrad_weights", "dice_bce_backward"} <= set(backends)
    assert main(["doctor"]) == 0
    assert "Backends" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert main([]) == 2


def test_doctor_needs_no_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["doctor"]) == 0
    assert "dice_bce" in json.loads(capsys.readouterr().out)["backends"]


def test_doctor_names_what_a_gpu_lacks(capsys, monkeypatch):
    monkeypatch.setattr("fastmtl.cli.doctor.gpu_fallbacks", lambda: {"cupy": "stain statistics: no [cupy]"})
    assert main(["doctor"]) == 0
    assert "note: stain statistics: no [cupy]" in capsys.readouterr().out


def test_print_config_shows_flags_and_sets(capsys):
    arguments = ["train", "demo", "--print-config", "--lr", "0.5", "--set=balancer.reduction=mean"]
    assert main(arguments) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["optimizer"]["lr"] == 0.5
    assert shown["balancer"] == {"name": "pcgrad", "reduction": "mean"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "RECIPE is missing"),
        (["train", "demmo"], "unknown recipe 'demmo'; did you mean 'demo'"),
        (["train", "demo", "--set", "model.base_chanels=4"], "no option 'base_chanels'; did you mean 'base_channels'"),
        (["train", "demo", "--set", "model.name=joint_une"], "unknown model 'joint_une'; did you mean 'joint_unet'"),
        (["train", "demo", "--set", "balancer.name=pcgrd"], "did you mean 'pcgrad'"),
        (["train", "demo", "--set", "balancer.reduktion=mean"], "no option 'reduktion'; did you mean 'reduction'"),
        (["train", "demo", "--set", "tasks.segmentation.kind=segment"], "unknown kind 'segment'"),
        (["train", "demo", "--set", "data.augmentation.rotate=3"], "did you mean 'rotation'"),
        (["train", "demo", "--set", "epochs=3"], "unknown key 'epochs'; did you mean 'training.epochs'?"),
        (["train", "demo", "--epochs", "0"], "training.epochs must be at least 1"),
        (["train", "demo", "--size", "100"], "data.size must be a positive multiple of 16"),
        (["train", "demo", "--device", "gpu0"], "training.device must be auto, cpu, cuda or cuda:N"),
        (["train", "demo", "--optimizer", "apex_adam"], "needs NVIDIA's apex"),
        (["eval", "nowhere", "--data", "x"], "nowhere is not a run folder"),
        (["eval"], "RUN is missing"),
    ],
)
def test_mistakes_get_one_line(arguments, message, tiles, tmp_path, capsys):
    out = tmp_path / "out"
    if arguments[0] == "train" and len(arguments) > 1:
        arguments = [*arguments[:2], "--data", str(tiles), "--out", str(out), *arguments[2:]]
    assert message in _says(capsys, arguments, 2 if message.endswith("is missing") else 1)
    assert not out.exists(), "a run that cannot start must leave nothing behind"


def test_mistakes_with_data_and_folders_get_one_line(run, tiles, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    train = ["train", "ebhi_joint_unet", "--out", str(tmp_path / "out")]
    assert "add --data DIR" in _says(capsys, train, code=2)
    assert "no class folders" in _says(capsys, [*train, "--data", str(tmp_path / "empty")])
    assert "does not exist" in _says(capsys, [*train, "--data", str(tmp_path / "none")])
    split = tmp_path / "split.json"
    split.write_text('{"validation_patients": ["GT0"]}')
    assert "GT0" in _says(capsys, [*train, "--data", str(tiles), "--split", str(split)])
    assert not (tmp_path / "out").exists()
    assert "contains a run with data.size = 32, and now it is 96" in _says(
        capsys, ["train", "demo", "--data", str(tiles), "--out", str(run)]
    )
    assert "no images" in _says(capsys, ["predict", str(run), str(tmp_path / "empty"), "--out", str(tmp_path / "p")])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"not a picture")
    assert "a.png" in _says(capsys, ["predict", str(run), str(broken), "--out", str(tmp_path / "p")])
    assert main(["no-such-command"]) == 2


def test_damaged_run_folders_get_one_line(run, tiles, tmp_path, capsys):
    import shutil

    evaluate = ["eval", str(tmp_path / "r"), "--data", str(tiles)]
    for name, content, message in (
        ("run.json", "{}", "run.json is damaged: it has no 'data'"),
        ("run.json", "", "run.json is damaged"),
        ("BEST", '{"sha256": [], "format": 1}', "names None as the best checkpoint"),
        (
            "BEST",
            '{"sha256": [], "format": 1, "best": "step-00000004-2"}',
            "Move this folder away to use the checkpoint",
        ),
        ("BEST", "[]", "unreadable manifest"),
    ):
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        shutil.copytree(run, tmp_path / "r")
        best = located(tmp_path / "r" / "checkpoints" / "best") / "manifest.json"
        (best if name == "BEST" else tmp_path / "r" / name).write_text(content)
        assert message in _says(capsys, evaluate)
    shutil.rmtree(tmp_path / "r")
    shutil.copytree(run, tmp_path / "r")
    config = tmp_path / "r" / "config.toml"
    config.write_text(config.read_text().replace("base_channels = 4", "base_channels = 8"))
    assert "does not fit the network of the run's config.toml" in _says(capsys, evaluate)


def test_a_diverging_run_stops_with_the_tasks_name(tiles, tmp_path, capsys):
    arguments = ["train", "demo", "--data", str(tiles), "--out", str(tmp_path / "out"), *SMALL, "--epochs", "9"]
    # Without clipping and with an absurd rate the weights overflow within an epoch or two.
    said = _says(capsys, [*arguments, "--lr", "1e18", "--clip-norm", "0", "--optimizer", "sgd", "--warmup", "0"])
    assert "NaN or infinite" in said
    assert "Lower optimizer.lr" in said
    spoilt = sorted(path.name for path in (tmp_path / "out" / "nonfinite").iterdir())
    assert [name.partition(".")[2] for name in spoilt[:2]] == ["json", "safetensors"]
    assert json.loads((tmp_path / "out" / "nonfinite" / spoilt[0]).read_text())["tiles"]
    again = ["train", "--resume", "--out", str(tmp_path / "out")]
    assert f"continue from it with: fastmtl {' '.join(again)} --lr RATE" in said
    assert main([*again, "--lr", "1e-3", "--epochs", "1"]) == 0
    (record,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert record["lr"] < 1e-3
    assert record["skipped"] == 0


def test_a_run_says_where_its_time_went_and_writes_a_profile(tiles, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["train", "demo", "--data", str(tiles), "--out", str(out), *SMALL, "--batch-size", "1", "--profile"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert f"profile of 4 steps: {out / 'profile' / 'trace.json'}" in said
    assert re.search(r"\ntime of epoch \d+: .*forward \d+%, .*GiB\n", said)
    assert json.loads((out / "profile" / "trace.json").read_text())["traceEvents"]
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert record["skipped"] == 0
    assert sum(record["time"].values()) == pytest.approx(1, abs=0.01)
    assert {"loader", "forward", "backward segmentation", "optimizer"} <= record["time"].keys()
    page = (out / "report.html").read_text()
    assert "backward segmentation <b>" in page
    assert "training steps" not in page


@pytest.mark.parametrize("given", [["--scale", "tiny"], ["--scale=tiny"]])
def test_a_recipe_is_trained_at_a_scale_and_flags_win(given, capsys):
    assert main(["train", "mask2tasks/two_stage", *given, "--print-config", "--batch-size", "4"]) == 0
    found = tomllib.loads(capsys.readouterr().out)
    assert (found["data"]["size"], found["data"]["max_tiles"], found["data"]["batch_size"]) == (64, 120, 4)
    assert found["model"]["preset"] == "tiny"
    assert [stage["epochs"] for stage in found["stages"]] == [1, 1]
    assert main(["train", "mask2tasks/two_stage", *given, "--print-config", "--set", "data.size=96"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["data"]["size"] == 96
    assert main(["train", "mask2tasks/two_stage", "--scale", "full", "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["data"]["size"] == 224


def test_scales_that_are_not_there_get_one_line(capsys):
    assert "has no scale 'huge'; it has tiny, small, full" in _says(
        capsys, ["train", "mask2tasks/pcgrad", "--scale", "huge"]
    )
    for given in (["--scale"], ["--scale", "--epochs", "3"], ["--scale="]):
        assert "--scale needs one of" in _says(capsys, ["train", "mask2tasks/pcgrad", *given], 2)
