"""The page of a run whose files are missing, broken or edited: what is wrong is named, and the rest is shown."""

import json
import shutil

import pytest

from fastmtl.cli import main


@pytest.mark.parametrize(
    ("name", "said"), [("balance.jsonl", "no balance.jsonl"), ("evaluation.jsonl", "evaluation.jsonl does not exist")]
)
def test_what_a_run_lacks_is_said_in_its_place_and_named(run, name, said, capsys):
    (run / name).unlink()
    assert main(["report", str(run)]) == 1
    assert said in (run / "report.html").read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name}: no such file; " in line


def test_a_run_without_metrics_promises_no_scores(run, capsys):
    (run / "metrics.jsonl").unlink()
    (run / "summary.json").unlink()
    assert main(["report", str(run)]) == 1
    curves, scores = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: no such file; there are no curves" in curves
    assert "summary.json: no such file; there are no scores" in scores
    assert "has no scores" in (run / "report.html").read_text()


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "environment.json", "run.json"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"epoch": "x"}', b"\xff\xfe{", b'{"tasks": 3, "epoch": 1}'])
def test_broken_and_missing_files_are_named_and_the_rest_goes_on(run, name, content, capsys):
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    broken = content in (None, b"", b"[1]", b"\xff\xfe{") or name in ("metrics.jsonl", "summary.json")
    assert main(["report", str(run)]) == (1 if broken else 0)
    said = capsys.readouterr().err
    assert all(line.startswith("fastmtl: ") for line in said.splitlines())
    assert (name in said) == broken
    page = (run / "report.html").read_text()
    assert "Tiles to look at" in page
    assert ("Missing from this page" in page) == broken


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("run.json", ["class_names"], [None]),
        ("run.json", ["training_patients"], 3),
        ("environment.json", ["gpus"], None),
        ("environment.json", ["packages"], []),
        ("evaluation.jsonl", ["tasks", "outline"], None),
        ("evaluation.jsonl", ["tasks", "outline", "dice"], "0.5"),
        ("evaluation.jsonl", ["tasks", "kind", "predicted"], None),
        ("evaluation.jsonl", ["tasks", "kind", "probabilities"], {}),
    ],
)
def test_values_of_another_form_are_named_and_the_rest_goes_on(run, name, keys, value, capsys):
    lines = (run / name).read_text().splitlines() if name.endswith("l") else [(run / name).read_text()]
    first = part = json.loads(lines[0])
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (run / name).write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    assert main(["report", str(run)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "run: a file is not as fastmtl writes it (" in said
    page = (run / "report.html").read_text()
    assert "Missing from this page" in page
    assert "Where the time went" in page


def test_a_run_with_an_edited_file_is_left_out_of_a_comparison(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "other")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"class_names": [None]}))
    assert main(["report", str(run), str(tmp_path / "other"), "--out", str(tmp_path / "both.html")]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "run: a file is not as fastmtl writes it (TypeError" in said
    assert "Comparison of 1 run" in (tmp_path / "both.html").read_text()


def test_a_broken_line_and_a_lost_picture_are_named(run, capsys):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    (run / "tiles" / "001.jpg").unlink()
    assert main(["report", str(run)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl, line 4" in first
    assert "001.jpg" in second
    assert "epoch 3 of 3" in (run / "report.html").read_text()


def test_mistakes_get_one_line(run, tmp_path, capsys):
    for arguments, said in [
        (["report", str(run), str(run)], "--out PAGE.html"),
        (["report", str(tmp_path)], "is not a run folder"),
    ]:
        assert main(arguments) == (1 if "folder" in said else 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    with pytest.raises(SystemExit, match="2"):
        main(["report"])
    assert "required: RUN" in capsys.readouterr().err
