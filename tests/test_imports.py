"""The house has floors and no stair runs back up: who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastmtl"
# module or package of fastmtl -> what of fastmtl it may import. A new module takes its place here first.
ALLOWED = {
    "errors": set(),
    "notices": {"data", "protocols", "words"},
    "directions": set(),
    "names": set(),
    "words": set(),
    "reference": set(),
    "kernels": set(),
    "protocols": {"models"},
    "models": {"extras", "names", "torchvision_guard"},
    "state_checks": {"errors"},
    "checkpoint": {"averaging", "parsing", "state_checks"},
    "tables": {"errors", "names"},
    "paper": set(),
    "parsing": set(),
    "recipe": {"paper"},
    "limits": {"names", "recipe", "tables"},
    "recipe_files": {"names", "tables", "parsing"},
    "config": {"limits", "recipe", "recipe_files", "tables", "parsing"},
    "torchvision_guard": set(),
    "whole_files": set(),
    "metrics": {"torchvision_guard"},
    "replay": set(),
    "extras": {"errors"},
    "ops": {"errors", "reference", "kernels", "_C"},
    "losses": {"ops"},
    "balance": {"names", "ops", "replay", "world"},
    "data": {"errors", "kernels", "names", "ops", "protocols", "extras", "whole_files", "parsing", "words"},
    "tasks": {"losses", "metrics", "models", "names", "protocols"},
    "run_folder": {"config", "errors", "whole_files", "parsing"},
    "progress": set(),
    "world": {"errors"},
    "inference": {"protocols", "world"},
    "update": {"protocols"},
    "watching": {"config", "ops", "replay"},
    "averaging": set(),
    "schedule": {"config"},
    "trainer": {
        *(
            "averaging",
            "update",
            "protocols",
            "checkpoint",
            "config",
            "errors",
            "inference",
            "replay",
            "state_checks",
            "watching",
            "world",
        ),
    },
    "lr_finder": {"errors", "protocols", "trainer"},
    "tta": {"config", "limits", "protocols"},
    "stages": {
        *("averaging", "build", "checkpoint", "config", "lr_finder", "protocols", "schedule", "trainer", "world"),
    },
    "locks": {"run_folder"},
    "predict": {"data", "evaluation", "locks", "names", "run_folder", "whole_files", "parsing"},
    "predict_images": {"data", "names", "predict", "protocols", "run_folder", "whole_files"},
    "stitching": set(),
    "slide_maps": {"data", "names", "predict", "stitching", "whole_files"},
    "predict_slides": {"data", "predict", "protocols", "run_folder", "slide_maps", "whole_files", "parsing"},
    "evaluation": {"data", "metrics", "protocols", "whole_files"},
    "target_checks": {"config", "data", "names", "protocols"},
    "datasets": {"config", "data", "names", "target_checks", "tasks"},
    "staining": {"config", "data", "names", "world"},
    "analyses": {"build", "config", "data", "protocols", "run_folder", "whole_files"},
    "build": {"update", "config", "models", "names", "tasks", "balance", "data", "protocols", "world"},
    "report": {"directions", "extras", "run_folder", "parsing", "words"},
    "doctor": {"ops", "run_folder"},
    "job": {
        *(
            "build",
            "config",
            "data",
            "datasets",
            "inference",
            "notices",
            "protocols",
            "staining",
            "tta",
            "words",
            "world",
        ),
    },
    "training": {
        *("analyses", "build", "checkpoint", "config", "data", "directions", "evaluation", "inference", "job"),
        *("notices", "progress", "protocols", "run_folder", "staining", "stages", "trainer", "tta", "words", "world"),
    },
    "commands": {
        *("analyses", "build", "checkpoint", "config", "data", "datasets", "inference", "notices", "predict"),
        *("predict_images", "predict_slides", "progress", "protocols", "report", "run_folder", "staining", "stages"),
        *("training", "tta", "whole_files"),
    },
    "__main__": {"cli"},
    "catalogue": {"models"},
    "arguments": {"config"},
    "train_command": {"arguments", "commands", "config", "progress", "words"},
    "run_commands": {"arguments", "commands"},
    "data_page": {"notices", "words"},
    "rehearsal": {"build", "config", "data", "datasets", "errors"},
    "data_commands": {"config", "data", "data_page", "datasets", "rehearsal", "words"},
    "reproduce": {
        *("checkpoint", "commands", "config", "datasets", "directions", "extras", "locks", "names", "parsing"),
        *("progress", "run_folder", "trainer", "whole_files", "words"),
    },
    "paper_commands": {"config", "extras", "progress", "reproduce"},
    "cli": {
        *("arguments", "benchmarks", "catalogue", "data_commands", "doctor", "errors", "extras"),
        *("paper_commands", "run_commands", "train_command"),
    },
    "benchmarks": {
        *("balance", "build", "config", "data", "kernels", "ops", "protocols", "run_folder", "torchvision_guard"),
        *("progress", "trainer"),
    },
}
THIRD_PARTY = {
    "reference": {"torch", "math", "typing", "dataclasses"},
    "kernels": {"torch", "triton", "numba", "cupy", "numpy", "math"},
}


def _imports(path: Path) -> set[str]:
    """Dotted names that `path` imports, relative ones resolved to `fastmtl.…`."""
    parts = ["fastmtl", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            inside = module == "fastmtl" or module.startswith("fastmtl.")
            found |= {f"{module}.{alias.name}" for alias in node.names} if inside else {module}
    return found


def _modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert place in ALLOWED, f"{place} has no place in the house: add it to ALLOWED with what it may import"
    for name in _imports(path):
        if name.startswith("fastmtl."):
            target = name.split(".")[1]
            assert target in ALLOWED[place] | {place, "__version__"}, f"{place} must not import fastmtl.{target}"
        elif place in THIRD_PARTY and name.split(".")[0] not in {*THIRD_PARTY[place], "__future__"}:
            pytest.fail(f"{place} must not import {name}")


def test_ops_need_torch_and_numpy_alone():
    """Someone who installs fastmtl for the ops has none of the extras."""
    script = (
        "import sys, fastmtl, fastmtl.ops, fastmtl.losses, fastmtl.balance, fastmtl.models, fastmtl.data\n"
        "extras = {'nvidia', 'PIL', 'rich', 'tyro', 'torchmetrics', 'safetensors', 'tifffile', 'sklearn', 'numba'}\n"
        "loaded = sorted(extras & {name.split('.')[0] for name in sys.modules})\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
