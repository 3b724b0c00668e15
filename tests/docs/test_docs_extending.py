"""The code in docs/extending.md works without changes."""

import json
import re
from pathlib import Path

import torch
from helpers.paths import DOCS
from helpers.tiles import write_folder

from fastmtl import data, models, tasks
from fastmtl.cli import main
from fastmtl.data.formats import registry as formats
from fastmtl.models import registry as model_registry
from fastmtl.tasks import registry as task_registry

PAGE = DOCS / "extending.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "tiles", {"benign": 4, "malignant": 4}, size=32)
    monkeypatch.chdir(tmp_path)
    for module, registry in ((model_registry, "_MODELS"), (task_registry, "_TASKS"), (formats, "_FORMATS")):
        monkeypatch.setattr(module, registry, dict(getattr(module, registry)))
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 2
    torch.manual_seed(0)
    for block in blocks:
        exec(block, {"__name__": "page"})
    assert re.search(r"\{'grade': [\d.]+, 'image': [\d.]+\}", capsys.readouterr().out)
    assert "patchwork" in models.list_models()
    assert "ordered" in tasks.list_tasks()
    recipe = re.search(r"```toml\n(model.*?)```", text, flags=re.S)[1]
    Path("mine.toml").write_text(recipe)
    assert main(["train", "mine.toml", "--data", "tiles", "--out", "run", "--epochs", "1"]) == 0
    assert set(json.loads(Path("run/summary.json").read_text())["tasks"]) == {"grade", "image"}
    (tmp_path / "archive.db").touch()
    assert data.read_dataset(tmp_path).class_names == ("benign", "malignant")
