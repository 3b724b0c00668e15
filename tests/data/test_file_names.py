"""Names that become files: refused where a recipe chooses them, made safe where data do, and never two of one file."""

import json
import unicodedata
from contextlib import nullcontext

import pytest
import torch
from helpers.runs import untrained
from helpers.tiles import random_pixels, write_image
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastmtl import config, data
from fastmtl.cli import main
from fastmtl.prediction.images import write_predictions
from fastmtl.prediction.output_dir import check_apart, entry_name, inside
from fastmtl.prediction.slides import check_places
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task
from fastmtl.training.run_dir import RunError
from fastmtl.utils.suggestions import file_name, file_name_problem, folded

HOSTILE = [
    *(
        "",
        ".",
        "..",
        "../up",
        "/abs",
        "a/b",
        "a\\b",
        "C:\\x\\y",
        "a\0b",
        "a\nb",
        "\x7f",
        ".hidden",
        "end.",
        "end ",
        " a",
    ),
    *("CON", "con", "nul.txt", "LPT1", "x" * 201, "é" * 101, "\udc80"),
]
names = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_task_cannot_have_a_name_that_no_file_should_have(name):
    with pytest.raises(config.ConfigError, match=r"is used as a file name, but (?s:.)*; choose another"):
        config.load_recipe("demo", {"tasks": {name: {"kind": "classification"}}})


@pytest.mark.parametrize("name", ["predictions.jsonl", "predicted_with.json", "gland.tif", "gland.geojson"])
def test_a_task_is_not_called_as_the_files_of_predictions_are(name):
    with pytest.raises(config.ConfigError, match="has an ending of prediction files"):
        config.load_recipe("demo", {"tasks": {name: {"kind": "classification"}}})


@pytest.mark.parametrize(
    "name", ["gland 2", "a.b", "a -> b", "tumor > 2 cm", "腺", "_", "-x", "console", "Grade (1-3)"]
)
def test_what_harms_nobody_stays_a_name(name):
    assert list(config.load_recipe("demo", {"tasks": {name: {"kind": "classification"}}}).tasks)[-1] == name


@pytest.mark.parametrize(
    "pair", [("Gland", "gland"), ("Café", unicodedata.normalize("NFD", "café")), ("straße", "STRASSE")]
)
def test_tasks_that_differ_by_case_or_form_alone_are_refused(pair):
    with pytest.raises(config.ConfigError, match="would share a file"):
        config.load_recipe("demo", {"tasks": {name: {"kind": "classification"} for name in pair}})


@pytest.mark.parametrize("name", ["../../up", "/abs", "a//b", "x\0", "paper/.."])
def test_a_recipes_own_name_leads_nowhere_else(name, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "demo"\nname = {json.dumps(name)}\n')
    with pytest.raises(config.ConfigError, match=r"choose another `name`|name must not contain a null"):
        config.load_recipe(path)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(names, names)
@example("%2F", "/")
@example("..", "%2E%2E")
@example("\r" + "0" * 64, "\r" + "0" * 300)
def test_names_of_data_become_files_of_their_own(one, other):
    safe = file_name(one)
    assert (
        not one or file_name_problem(safe) in ("", "holds '\\udc80'") or "\ud800" <= max(safe) <= "\udfff" or _odd(safe)
    )
    assert (file_name(other) == safe) == (one == other)
    assert "/" not in safe
    assert safe not in (".", "..")


def _odd(safe):
    """Controls beyond ASCII are odd and lead nowhere."""
    return any(unicodedata.category(letter) == "Cc" and letter > "\x7f" for letter in safe)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(["image", "image_task", "image_task_task", "gland", "x", "x_task"]), unique=True))
def test_answers_and_facts_of_a_line_keep_apart(tasks):
    facts = ["image", "x"]
    assert len({*facts, *(entry_name(task, facts) for task in tasks)}) == len(tasks) + len(facts)


@pytest.mark.parametrize("name", ["../x", "/abs/x", "a/../../x", "x\0", ".", ""])
def test_nothing_is_written_outside_the_folder(name, tmp_path):
    with pytest.raises(RunError, match="would not be written into"):
        inside(tmp_path / "out", name)
    with pytest.raises(RunError, match="would not be written into"):
        check_places([name], tmp_path / "out")


def test_a_hidden_slide_is_told_not_lost(tmp_path):
    with pytest.raises(RunError, match="is hidden"):
        check_places([".cache/slide.svs"], tmp_path)


@pytest.mark.parametrize("name", ["../../victim", "ABSOLUTE"])
def test_ids_from_elsewhere_overwrite_nothing(name, tmp_path):
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"precious")
    name = str(tmp_path / "victim") if name == "ABSOLUTE" else name
    image = write_image(tmp_path / "image.png", random_pixels(0))
    task = create_task("binary_segmentation", "gland", 0)
    batch = Batch(torch.zeros(1, 3, 8, 8), {}, torch.zeros(1, 1, dtype=torch.bool), {}, [name], ["P"])
    tiles = [data.Tile(name, image, mask=None, label=None, group="P")]

    class Model(torch.nn.Module):
        def forward(self, batch):
            return {"gland": torch.zeros(1, 1, 8, 8)}

    with pytest.raises(RunError, match="would not be written into") if name[0] == "." else nullcontext():
        write_predictions(Model(), [task], iter([batch]), tiles, tmp_path / "out" / "deep")
    assert victim.read_bytes() == b"precious"


def test_structures_of_any_name_have_masks_of_their_own(tmp_path):
    structures = ["..", "a/b", "a%2Fb", "CON", "\0", "gland"]
    task = create_task("multilabel_segmentation", "organs", 0, structures=structures)
    image = write_image(tmp_path / "image.png", random_pixels(0))
    batch = Batch(torch.zeros(1, 3, 8, 8), {}, torch.zeros(1, 1, dtype=torch.bool), {}, ["x.png"], ["P"])
    out = tmp_path / "out"

    class Model(torch.nn.Module):
        def forward(self, batch):
            return {"organs": torch.zeros(1, len(structures), 8, 8)}

    write_predictions(Model(), [task], iter([batch]), [data.Tile("x.png", image, None, None, "P")], out)
    (line,) = (json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines())
    masks = {line["organs"][one]["mask"] for one in structures}
    assert masks == {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert len(masks) == len(structures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "out"]


def test_names_that_differ_by_case_meet_where_case_does_not_count(tmp_path):
    check_apart(["A", "a"], tmp_path)  # this file system keeps them apart
    (tmp_path / data.PREDICTED_WITH.upper()).touch()  # as it is found where case does not count
    check_apart(["A", "b"], tmp_path)
    with pytest.raises(RunError, match="A and a would share a file"):
        check_apart(["A", "b", "a"], tmp_path)
    assert folded("A") == folded("a")


def test_a_run_whose_task_leads_elsewhere_is_not_predicted_with(tmp_path, capsys):
    run = untrained(tmp_path / "run")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[tasks.segmentation]", f'[tasks."{tmp_path}/victim"]'))
    write_image(tmp_path / "images" / "x.png", random_pixels(0))
    assert main(["predict", str(run), str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 1
    assert "is used as a file name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["U-Net / tiles v1.", "Study 1", "paper/row"])
def test_a_recipe_may_be_called_what_leads_nowhere_else(name):
    assert config.load_recipe("demo", {"name": name}).name == name


@pytest.mark.parametrize("name", ["..", "../up", "/up", "a/ .. /b", "a//b"])
def test_a_recipe_is_not_called_what_leads_elsewhere(name):
    with pytest.raises(config.ConfigError, match="is used for a folder"):
        config.load_recipe("demo", {"name": name})
