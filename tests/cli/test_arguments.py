"""What every command's parser takes: options, `--set` in all its forms, and names of earlier versions."""

import re
import subprocess
import sys
import tomllib
import typing

import pytest
from helpers.tiles import write_folder

from fastmtl import cli, config
from fastmtl.cli import main
from fastmtl.cli.arguments import Parser

SETS = ["data.size=64", "data.tile_size=64"]


@pytest.mark.parametrize("command", [[name] for name in cli._COMMANDS if name != "data"] + [["data", "check"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: fastmtl {' '.join(command)}" in capsys.readouterr().out


def test_help_of_train_has_every_option_with_the_recipes_value(capsys):
    with pytest.raises(SystemExit):
        main(["train", "ebhi_best", "--set", "optimizer.lr=0.125", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    for table in (config.DataConfig, config.OptimizerConfig, config.TrainingConfig):
        for name, hint in typing.get_type_hints(table).items():
            shown = re.search(f" --{name.replace('_', '-')}[ ,]", page) is not None
            is_table = typing.get_origin(hint) is dict or hint == list[config.SetConfig]
            assert shown != is_table, name
    for option in ("--resume", "--out", "--scale", "--split", "--set", "--print-config", "--hue"):
        assert f" {option}" in page
    assert "Highest learning rate. (default: 0.125)" in page
    assert "--shorten" not in page


@pytest.mark.parametrize(
    "given",
    [
        ["--set", *SETS],
        ["--set", SETS[0], "--set", SETS[1]],
        [f"--set={SETS[0]}", "--set", SETS[1]],
        ["--json", "--set", *SETS],
    ],
)
def test_set_is_the_same_in_all_its_forms(given):
    for arguments in ([*given, "PATH"], ["PATH", *given]):
        parser = Parser("some", "A command.")
        parser.need("PLACE", "a path")
        parser.add_set("keys")
        parser.add_json()
        parsed = parser.parse(arguments)
        assert (parsed.place, parsed.sets) == ("PATH", SETS)


@pytest.mark.parametrize(
    "command",
    [["train", "demo"], ["data", "check", "nowhere"], ["reproduce", "mask2tasks", "--data", "nowhere"]],
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set"], "--set needs KEY=VALUE, for example model.base_channels=8; got nothing."),
        (["--set", "--json"], "--set needs KEY=VALUE, for example model.base_channels=8; got nothing."),
        (["--set", "data.size"], "--set needs KEY=VALUE, for example model.base_channels=8; got 'data.size'."),
        (["--set", "data.sice=3"], "unknown key 'data.sice'; did you mean 'size'"),
    ],
)
def test_a_wrong_set_has_the_same_message_in_every_command(command, given, message, capsys):
    assert main([*command, *given]) == (2 if "KEY=VALUE" in message else 1)
    assert capsys.readouterr().err.startswith(f"fastmtl: {message}")


def test_flags_win_over_set_and_have_the_types_of_the_recipe(capsys):
    flags = ["--epochs", "3", "--no-find-lr", "--compile", "--fused-step", "False", "--tta", "h", "v", "--hue=3"]
    assert main(["train", "demo", "--set", "training.epochs=2", "--print-config", "--batch_size", "5", *flags]) == 0
    recipe = tomllib.loads(capsys.readouterr().out)
    training, augmentation = recipe["training"], recipe["data"]["augmentation"]
    assert (training["epochs"], training["compile"], training["fused_step"]) == (3, True, False)
    assert (training["tta"], augmentation, recipe["data"]["batch_size"]) == (["h", "v"], {"hue": 3.0}, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "RUN is missing: it comes first, fastmtl eval RUN ... (a folder that"),
        (
            ["predict", "RUN"],
            "INPUT is missing: it comes first, fastmtl predict RUN INPUT ... (an image, a slide or",
        ),
        (["train", "ebhi_joint_unet"], "recipe ebhi_joint_unet needs data: add --data DIR."),
        (["train", "--epochs", "3"], "RECIPE is missing: it comes first, fastmtl train RECIPE ... (recipes: demo, "),
    ],
)
def test_a_missing_argument_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"fastmtl: {message}")


@pytest.mark.parametrize("command", [["eval", "RUN"], ["predict", "RUN", "INPUT"], ["reproduce", "mask2tasks"]])
def test_a_missing_option_is_wrong_usage(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert "the following arguments are required: --" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--epochs", "many"], ["--epoch", "3"], ["--optimizer", "adm"], ["other"]])
def test_wrong_usage_exits_with_2(wrong):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "demo", "--print-config", *wrong])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ([], "--resume continues a run: fastmtl train --resume --out RUN.", 2),
        (["--out", "RUN", "--scale", "tiny"], "continues RUN with its own recipe and split; remove --scale.", 2),
        (["--out", "RUN", "--data", "x"], "there is no run RUN to continue; start it with: fastmtl train RECIPE", 1),
        (["demo", "--out", "RUN"], "there is no run RUN to continue", 1),
    ],
)
def test_resume_takes_a_run_alone(arguments, message, code, capsys):
    assert main(["train", "--resume", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("old", [["--shorten", "0.5"], ["--set", "training.shorten=0.5"]])
def test_the_old_name_of_a_key_works_and_warns(old, capsys):
    with pytest.warns(DeprecationWarning, match="training.shorten is now called training.epoch_scale"):
        assert main(["train", "demo", "--print-config", *old]) == 0
    assert tomllib.loads(capsys.readouterr().out)["training"]["epochs"] == 4


@pytest.mark.long
def test_whoever_uses_an_old_name_sees_the_new_one():
    command = [sys.executable, "-m", "fastmtl", "train", "demo", "--print-config", "--watch-gradients", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert tomllib.loads(done.stdout)["training"]["gradient_stats_every"] == 5
    renamed = "the key training.watch_gradients is now called training.gradient_stats_every"
    assert done.stderr == f"fastmtl: {renamed}; the old name will be removed in fastmtl 0.2.\n"


def test_data_alone_shows_how_it_is_used(tmp_path, capsys):
    assert main(["data"]) == 2
    assert "usage: fastmtl data check" in capsys.readouterr().err
    assert main(["data", "--help"]) == 0
    write_folder(tmp_path, {"a": 2}, size=16)
    assert main(["data", "check", "--set", *SETS, str(tmp_path)]) == 0
