"""A run folder as the report reads it: its contents, and one line for each missing or broken file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..training.run_dir import RunError, RunFolder, read_lines
from ..utils.json_toml import JsonObject, parse_toml, read_json
from ..utils.limited_reads import MAX_TOML, read_whole
from ..utils.metric_directions import direction_of
from ..utils.score_names import set_and_task

# The errors of code that reads JSON with an unexpected structure.
UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass
class PastRun:
    """The contents of a run folder's files; empty for missing files.

    Attributes:
        held_out: the ids of the held-out images.
        problems: one line for each fault.
    """

    folder: Path
    config_text: str = ""
    config: JsonObject = field(default_factory=dict)
    facts: JsonObject = field(default_factory=dict)
    environment: JsonObject = field(default_factory=dict)
    summary: JsonObject = field(default_factory=dict)
    records: list[JsonObject] = field(default_factory=list)
    looks: list[JsonObject] = field(default_factory=list)
    resumes: list[JsonObject] = field(default_factory=list)
    images: list[JsonObject] = field(default_factory=list)
    analyses: JsonObject = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.folder.name))

    @property
    def notices(self) -> list[str]:
        """Notices about data and scores; only about the data if the run has no summary."""
        return self.summary.get("notices", self.facts.get("notices", []))

    @property
    def unit(self) -> str:
        """The unit of the split."""
        data = self.config.get("data", {})
        group_by = data.get("group_by", "") if isinstance(data, dict) else ""
        return {"": "patient", "patient": "patient", "tile": "image"}.get(group_by, "group")

    def options(self, task: str) -> JsonObject:
        """The recipe's options of a task; {} if there are none."""
        tasks = self.config.get("tasks", {})
        found = tasks.get(set_and_task(task)[1], {}) if isinstance(tasks, dict) else {}
        return found if isinstance(found, dict) else {}

    def classes(self, task: str) -> list[str]:
        """The classes of a task's column, in order; [] if unknown."""
        column = f"tasks.{task}" if "sets" in self.facts else self.options(task).get("column", "")
        if column in ("", "label"):
            return self.facts.get("class_names", [])
        return self.facts.get("classes", {}).get(column, [])

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Whether larger is better: from the run; for runs of older versions by the metric's name. None: unknown."""
        if "higher_is_better" in self.summary:
            return self.summary["higher_is_better"].get(task, {}).get(metric)
        return direction_of(f"{task}.{metric}")

    def edited(self, error: Exception) -> None:
        """Add a problem for values that fastmtl does not write, in an edited file."""
        said = f"{type(error).__name__}: {error}"
        self.problems.append(f"{self.folder}: a file is not as fastmtl writes it ({said}); what needs it is left out.")

    @property
    def watching(self) -> str:
        """The images that were evaluated after each epoch."""
        return "inner share" if self.facts.get("inner_patients") else "held out"

    @property
    def by_tile(self) -> bool:
        """Whether the split is by image: a patient may be on both sides, and patients are unknown."""
        return self.unit == "image"

    @property
    def scores(self) -> dict[str, JsonObject]:
        """Task -> metrics on the held-out images: from the summary, else from the last epoch that has them."""
        if self.summary:
            return self.summary["tasks"]
        found = (record["validation"]["tasks"] for record in reversed(self.records) if "validation" in record)
        return next(found, {})


def read_run(folder: Path) -> PastRun:
    """Read `folder`.

    Raises:
        RunError: it is not a run folder.
    """
    config = folder / "config.toml"
    if not config.is_file():
        raise RunError(
            f"{folder} is not a run folder: it has no config.toml. Give a folder that `fastmtl train` wrote."
        )
    run = PastRun(folder)
    try:
        run.config_text = read_whole(config, MAX_TOML).decode()
        run.config = parse_toml(run.config_text)
    except ValueError as error:
        run.problems.append(f"{config}: not TOML ({error}); the recipe is left out.")
    run.facts = _object(run, "run.json", "what the data was is left out")
    run.environment = _object(run, "environment.json", "device and versions are left out")
    run.records = _lines(run, "metrics.jsonl", {"epoch": int, "loss": dict}, "there are no curves")
    scored = any("validation" in record for record in run.records)
    instead = "scores are those of the last epoch" if scored else "there are no scores"
    run.summary = _object(run, "summary.json", f"{instead}; fastmtl train --resume finishes a run")
    if run.summary and not isinstance(run.summary.get("tasks"), dict):
        run.problems.append(f'{folder / "summary.json"}: has no "tasks"; {instead}.')
        run.summary = {}
    if (folder / "split.json").exists():  # manually created run folders have none
        run.held_out = _object(run, "split.json", "which images were held out is left out").get("validation", [])
    run.looks = _lines(run, "balance.jsonl", {"step": int, "loss": dict}, "the tasks' gradients are left out")
    run.resumes = RunFolder(folder).resumes()
    run.images = _lines(run, "evaluation.jsonl", {"id": str, "tasks": dict}, "there are no tiles and patients")
    if (folder / "analyses.json").exists():  # runs of earlier versions have none
        run.analyses = _object(run, "analyses.json", "saliency maps, feature maps and filters are left out")
    return run


def _object(run: PastRun, name: str, consequence: str) -> JsonObject:
    path = run.folder / name
    try:
        found = read_json(path)
    except FileNotFoundError:
        run.problems.append(f"{path}: no such file; {consequence}.")
    except ValueError:
        run.problems.append(f"{path}: not JSON; {consequence}.")
    else:
        if isinstance(found, dict):
            return found
        run.problems.append(f"{path}: not a JSON object; {consequence}.")
    return {}


def _lines(run: PastRun, name: str, fields: dict[str, type], consequence: str) -> list[JsonObject]:
    """The lines of a .jsonl file that have `fields`; `consequence` says what the page lacks without them."""
    path = run.folder / name
    records, problems = read_lines(path)
    run.problems += problems
    whole = [one for one in records if all(isinstance(one.get(key), kind) for key, kind in fields.items())]
    if len(whole) < len(records):
        lost = len(records) - len(whole)
        run.problems.append(f"{path}: {lost} lines without {' and '.join(map(repr, fields))}, left out.")
    if not whole:
        run.problems.append(f"{path}: {'nothing in it' if path.is_file() else 'no such file'}; {consequence}.")
    return whole
