"""Recipes: layering, checks, and errors that name the key and the nearest known one."""

import pytest

from fastmtl import config
from fastmtl.config import ConfigError, load_recipe, parse_override


@pytest.mark.parametrize("name", config.list_recipes())
def test_every_built_in_recipe_loads_and_survives_toml(name, tmp_path):
    tomli_w = pytest.importorskip("tomli_w")
    recipe = load_recipe(name)
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config.as_dict(recipe)))
    assert load_recipe(path) == recipe
    assert recipe.summary


def test_layers_defaults_extends_file_overrides(tmp_path):
    (tmp_path / "base.toml").write_text(
        '[training]\nepochs = 7\nseed = 3\n[tasks.a]\nkind = "classification"\n'
        '[model]\nname = "joint_unet"\nwidth = 1\n'
    )
    (tmp_path / "child.toml").write_text('extends = "base"\n[training]\nepochs = 8\n[model]\nbase_channels = 4\n')
    recipe = load_recipe(tmp_path / "child.toml", {"training": {"patience": 2}})
    assert (recipe.training.epochs, recipe.training.seed, recipe.training.patience) == (8, 3, 2)
    assert recipe.training.log_every == config.TrainingConfig().log_every
    assert recipe.model == {"name": "joint_unet", "width": 1, "base_channels": 4}
    assert recipe.name == "child"


def test_another_component_drops_the_old_ones_options(tmp_path):
    (tmp_path / "child.toml").write_text('extends = "demo"\n[balancer]\nname = "linear"\nweights = [1.0, 2.0]\n')
    recipe = load_recipe(tmp_path / "child.toml", {"model": {"name": "other"}})
    assert recipe.balancer == {"name": "linear", "weights": [1.0, 2.0]}
    assert recipe.model == {"name": "other"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainign": {}}, "unknown key 'trainign'; did you mean 'training'"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'epochs'"),
        ({"training": {"epochs": "3"}}, "training.epochs must be an integer; got '3'"),
        ({"training": {"epochs": True}}, "training.epochs must be an integer; got True"),
        ({"training": {"epochs": 0}}, "training.epochs must be at least 1"),
        ({"training": 3}, "training must be a table; got 3"),
        ({"optimizer": {"optimizer": "adm"}}, "optimizer.optimizer must be one of 'adamw'"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr must be finite and not negative"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr must be finite and not negative"),
        ({"data": {"polygon_rename": {"a": 1}}}, "data.polygon_rename must map classes to classes, as text"),
        ({"data": {"polygon_classes": ["a", "b", "b"]}}, "data.polygon_classes must name a class once"),
        (
            {"data": {"polygon_classes": [f"c{i}" for i in range(256)]}},
            "data.polygon_classes must be at most 255, since",
        ),
        ({"data": {"polygon_classes": ["a", "b"], "polygon_region": "b"}}, "polygon_classes must name neither"),
        (
            {"data": {"polygon_classes": ["a", "b"], "polygon_ignore": ["c"], "polygon_region": "c"}},
            "data.polygon_region must not be one of data.polygon_ignore; got 'c'",
        ),
        ({"data": {"index_folder": "a\0"}}, "data.index_folder must not contain a null character"),
        ({"data": {"size": 100}}, "data.size must be a positive multiple of 16"),
        ({"tasks": {"x": {}}}, "tasks.x needs a `kind`"),
        ({"model": {"name": 3}}, "model needs a `name`, as text"),
        ({"data": {"polygon_classes": ["none", "a"], "polygon_ignore": ["a"]}}, "polygon_classes must name neither"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("data", {"size": 0, "batch_size": 0, "val_fraction": 1.0, "test_fraction": 0.8, "folds": 1, "fold": 1}),
        ("data", {"tile_size": 0, "mpp": float("inf"), "overlap": 256, "min_tissue": 1.5, "max_damaged": 1.0}),
        ("data", {"max_tiles": -1, "open_slides": -1, "per_slide": -1, "patches_per_slide": -1, "num_threads": 0}),
        ("data", {"polygon_offset": [1.0], "classes": {"grade": "G1"}, "metadata": {"film": "day"}}),
        ("training", {"clip_norm": -1.0, "patience": -1, "average_decay": 1.0, "average_start": -1, "log_every": 0}),
        ("training", {"tta": ["h", "h"], "gradient_stats_every": -1, "epochs": -2}),
        ("optimizer", {"lr": float("inf"), "weight_decay": -1.0, "warmup": 1.0, "plateau_factor": 1.0}),
        ("optimizer", {"plateau_patience": -1}),
    ],
)
def test_what_lies_out_of_range_is_told_with_its_value(table, values):
    for key, value in values.items():
        with pytest.raises(ConfigError) as caught:
            load_recipe("demo", {table: {key: value}})
        assert f"recipe demo: {table}.{key} must " in str(caught.value)
        assert str(caught.value).endswith(f"; got {value!r}.")


def test_an_integer_serves_as_a_number():
    assert load_recipe("demo", {"optimizer": {"lr": 1}}).optimizer.lr == 1.0


def test_unknown_and_broken_recipes(tmp_path):
    with pytest.raises(ConfigError, match="unknown recipe 'dmeo'; did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[training\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(tmp_path / "broken.toml")
    (tmp_path / "loop.toml").write_text('extends = "loop"\n')
    with pytest.raises(ConfigError, match="extends itself: loop -> loop"):
        load_recipe(tmp_path / "loop.toml")


@pytest.mark.parametrize("base", ["demo", "mask2tasks/pcgrad"])  # the second has scales
def test_what_a_base_has_wrong_is_told_with_its_file(base, tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "middle"\n[data]\nsize = 64\n')
    (tmp_path / "middle.toml").write_text('extends = "base"\n[optimizer]\nlr = 0.1\n')
    (tmp_path / "base.toml").write_text(f'extends = "{base}"\n[training]\nepoch = 3\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "mine.toml")
    assert (
        str(caught.value)
        == f"{tmp_path / 'base.toml'}: unknown key 'training.epoch'; did you mean 'epochs' or 'epoch_scale'?"
    )
    with pytest.raises(ConfigError, match=r"^unknown key 'training.epoch'"):  # of a flag, no file is named
        load_recipe(base, {"training": {"epoch": 3}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("model.base_channels=8", {"model": {"base_channels": 8}}),
        ("a.b.c=[1, 2]", {"a": {"b": {"c": [1, 2]}}}),
        ("model.name=joint_unet", {"model": {"name": "joint_unet"}}),
        ("x=a=b", {"x": "a=b"}),
    ],
)
def test_overrides_read_their_value_as_toml(text, value):
    assert parse_override(text) == value


@pytest.mark.parametrize("text", ["model.base_channels", "=3", ""])
def test_an_override_needs_a_key_and_a_value(text):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override(text)


def test_a_recipe_of_ones_own_has_its_own_title(tmp_path):
    """Not the base's: the page of a study would be headed by the paper's row."""
    (tmp_path / "_base.toml").write_text('extends = "mask2tasks/pcgrad"\nname = "base"\nsummary = "My study"\n')
    (tmp_path / "study.toml").write_text('extends = "_base"\n')
    (tmp_path / "other.toml").write_text('extends = "mask2tasks/pcgrad"\n')
    (tmp_path / "third.toml").write_text('extends = "other"\nname = "The third"\n[paper]\nrow = "mine"\n')
    study, other, third = (load_recipe(tmp_path / f"{name}.toml") for name in ("study", "other", "third"))
    assert (study.name, study.summary) == ("study", "My study")
    assert (other.name, other.summary) == ("other", "extends mask2tasks/pcgrad")
    assert (third.name, third.summary) == ("The third", "extends other")
    assert (study.paper.title, other.paper.figures, other.paper.row) == ("", {}, "")
    assert third.paper.row == "mine"
    assert load_recipe("mask2tasks/pcgrad").paper.title
    assert load_recipe("mask2tasks/pcgrad").summary == "Mask2Tasks in one stage: PCGrad"
