"""Every sentence of a run's page says what is so: of the right images and classes, in the right number, with the unit.

Each test is a kind of run: two label columns, ties, a class that is missing, one epoch or none, scores that nothing
defines, numbers alone, a test, stages."""

import math
import re
from html import unescape

import pytest
from helpers.past_runs import image, label, mask, past_run, record

from fastmtl.report import PastRun, render
from fastmtl.report.charts import UNKNOWN
from fastmtl.report.gradients import gradient_section
from fastmtl.report.images import class_facts, spread
from fastmtl.report.page import what_ran
from fastmtl.utils.words import percent

COLUMNS = {
    "config": {"tasks": {"grade": {"kind": "classification", "column": "grade"}, "kind": {"kind": "classification"}}},
    "facts": {"class_names": ["benign", "malignant"], "classes": {"grade": ["G1", "G2", "G3"]}},
}
GRADES = ("G1", "G2", "G3")
KINDS = ("benign", "malignant")


def _said(run):
    """The page as it is read, without pictures; one line for each part."""
    page = re.sub(r"<(style|svg|pre).*?</\1>", "", render(run), flags=re.S)
    return unescape(re.sub(r"</(p|li|h\d|td|th|figcaption)>|<br>", "\n", page.replace("\n", " "))).replace("  ", " ")


def _text(run):
    return re.sub(r"<[^>]*>", "", _said(run))


def _two_columns(*pairs, told=True, **fields):
    """Images of a grade and a kind; runs of earlier versions did not tell the probabilities of all classes."""
    images = []
    for number, (grade, kind) in enumerate(pairs):
        entries = {"grade": label(*grade, classes=GRADES), "kind": label(*kind, classes=KINDS)}
        if not told:
            entries = {name: {k: v for k, v in one.items() if k != "probabilities"} for name, one in entries.items()}
        images.append(image(f"i{number}", f"P{number}", **entries))
    scores = {"grade": {"accuracy": 0.5}, "kind": {"accuracy": 0.5}}
    return _with(past_run(scores, images=len(images), **{**COLUMNS, **fields}), images)


def _with(run, images):
    run.images = images
    return run


@pytest.mark.parametrize("told", [True, False])
def test_classes_are_those_of_the_tasks_own_column(told):
    run = _two_columns((("G1",), ("benign",)), (("G2", "G1"), ("benign",)), told=told)
    missed, ranges = class_facts(run)
    assert missed == ["grade: never found: G2 (0 of 1 image)."]
    assert ranges == [
        "grade: sensitivity per class is from 0% (G2) to 100% (G1); no image of G3 was held out.",
        "kind: all held-out images are of benign, and 100% of them were recognised; no image of malignant was held "
        "out.",
    ]


def test_without_a_recipe_classes_are_those_of_the_probabilities():
    run = _two_columns((("G1",), ("benign",)), (("G2",), ("malignant",)), config={})
    assert class_facts(run)[1] == [
        "grade: sensitivity is 100% in each of the 2 classes; no image of G3 was held out.",
        "kind: sensitivity is 100% in each of the 2 classes.",
    ]


def test_an_images_classes_are_told_apart_by_their_tasks():
    run = _two_columns((("G2", "G1"), ("benign",)))
    run.images[0]["tasks"]["outline"] = mask(0.5) | {"thumbnail": "tiles/1.jpg"}
    text = _text(run)
    assert "grade: G2, taken for G1" in text
    assert "kind: benign" in text


def test_the_columns_classes_stand_among_the_facts():
    rows = what_ran(_two_columns((("G1",), ("benign",))))
    assert (rows["classes"], rows["classes of grade"]) == ("benign, malignant", "G1, G2, G3")


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ([(200, 200), (200, 200)], "sensitivity is 100% in each of the 2 classes"),
        ([(100, 200), (100, 200)], "sensitivity is 50% in each of the 2 classes"),
        ([(199, 200), (200, 200)], "sensitivity per class is from 99.5% (no) to 100% (yes)"),
        ([(0, 200), (1, 200)], "sensitivity per class is from 0% (no) to 0.5% (yes)"),
        ([(151, 301), (150, 299)], "sensitivity is 50% in each of the 2 classes"),
    ],
)
def test_a_range_is_one_that_can_be_seen(right, said):
    classes = ("no", "yes")
    images = [
        image(kind=label(name, name if number < found else classes[1 - place]))
        for place, (name, (found, total)) in enumerate(zip(classes, right, strict=True))
        for number in range(total)
    ]
    assert class_facts(_with(past_run({"kind": {}}), images))[1] == [f"kind: {said}."]


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0%"), (1, "100%"), (0.995, "99.5%"), (0.9996, ">99.9%"), (4e-4, "<0.1%"), (0.004, "0.4%")]
)
def test_all_and_nothing_are_said_of_all_and_nothing_alone(share, said):
    assert percent(share) == said


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ([0.7], "the one image has a Dice of 0.700"),
        ([1.0] * 12, "all 12 images have a Dice of 1.000"),
        (
            [0.4, 0.6, 0.8],
            "half of the 3 images have a Dice of at least 0.600, the lowest has 0.400, and 1 is below 0.5",
        ),
        (
            [0.6] + [0.9] * 10,
            "half of the 11 images have a Dice of at least 0.900, one in ten has at most 0.900, and none is below 0.5",
        ),
        (
            [0.0, 0.0, 0.6, 0.7],
            "half of the 4 images have a Dice of at least 0.600, the lowest has 0.000, and 2 are below 0.5",
        ),
    ],
)
def test_how_dice_is_spread(dice, said):
    (line,) = spread(_with(past_run({"outline": {}}), [image(outline=mask(value)) for value in dice]))
    assert line == f"outline: {said}."


def test_one_image_of_one_patient_after_one_epoch():
    scores = {"outline": {"dice": 0.5}}
    run = past_run(scores, patients=["P1"], images=1, records=[record(1, scores)])
    text = _text(_with(run, [image(outline=mask(0.5) | {"thumbnail": "tiles/1.jpg"})]))
    assert "1 held-out image of 1 patient, with the weights of epoch 1 of 1." in text
    assert "1 patient, which is not in the training set." in text
    assert "in 1 epoch, without saving checkpoints." in text
    assert "outline: the only tile" in text
    assert not re.search(r"\b1 (images|patients|epochs|steps|threads|filters|groups)\b", text)


def test_tiles_that_all_score_the_same_are_neither_best_nor_worst():
    images = [
        image(str(n), outline=mask(1.0) | {"thumbnail": "tiles/1.jpg", "shown": ("worst", "best")[n]}) for n in range(2)
    ]
    text = _text(_with(past_run({"outline": {"dice": 1.0}}), images))
    assert "outline: the tiles, which all score the same" in text
    assert "the worst tiles" not in text


def test_weights_that_are_averages_are_called_so():
    scores = {"outline": {"dice": 0.5}}
    run = past_run(scores, records=[record(1, scores), record(2, scores)], config={"training": {"average": "ema"}})
    assert "with the weights of epoch 1 of 2, which scored best on them, averaged (ema)." in _text(run)
    run.summary["checkpoint"] = "last"
    assert "with the weights of the last epoch, averaged (ema)." in _text(run)


def test_no_epoch_yet():
    text = _text(past_run({}))
    assert "This run has no scores on held-out images." in text
    assert "no epochs" in text
    assert "with the weights of" not in text


def test_scores_that_nothing_defines_are_dashes():
    scores = {"outline": {"dice": math.nan}, "kind": {"accuracy": None, "auroc": 0.5}}
    run = past_run(scores, records=[record(1, scores)])
    text = _text(run)
    for said in (f"outline: Dice{UNKNOWN}", f"kind: Accuracy{UNKNOWN}", "kind: AUROC0.500"):
        assert said in text
    assert "which scored best" not in text
    assert "nan" not in re.sub("<style.*?</style>", "", render(run), flags=re.S).lower()


def test_numbers_alone():
    scores = {"size": {"mae": 3.5, "rmse": 12.25, "r2": -0.5}}
    images = [image(str(n), f"P{n + 1}", size={"score": -1.0, "value": 2.0, "predicted": 3.0}) for n in range(3)]
    text = _text(_with(past_run(scores, images=3, records=[record(1, scores)]), images))
    for said in (
        "size: MAE3.500",
        "size: RMSE12.2",
        "size: R²-0.500",
        "in the unit of the target; less is better",
        "below 0 worse",
    ):
        assert said in text
    assert "size: held out errors, less is better" in text, "a chart apart from R², which has no unit"
    assert "No tiles: none of the tasks has masks or boxes to draw" in text
    assert "evaluation.jsonl holds no image" not in text
    assert "3 patients, none of them in the training set." in text
    assert "No task of this run has values per class." in text


def test_means_over_batches_are_not_said_to_be_over_images():
    config = {"tasks": {"outline": {"kind": "binary_segmentation", "aggregate": {"dice": "batch"}}}}
    text = _text(past_run({"outline": {"dice": 0.5, "jaccard": 0.4}}, config=config))
    assert "the true area, mean over batches, their pixels taken together;" in text
    assert "of both together, mean over images." in text


def test_a_test_stands_apart():
    test = {"tasks": {"outline": {"dice": 0.25}}, "num_images": 7, "num_patients": 1}
    text = _text(past_run({"outline": {"dice": 0.5}}, summary={"test": test}))
    assert "7 test images of 1 patient, not used for any selection." in text
    assert "outline: Dice0.250" in text


def test_the_last_stage_alone_chose_its_weights():
    first = [record(epoch, {"outline": {"dice": 0.9}}, stage="outline") for epoch in (1, 2)]
    run = past_run({"outline": {"dice": 0.5}}, records=[*first, record(3, {"outline": {"dice": 0.5}}, stage="kind")])
    run.config["stages"] = [{"name": "outline", "balancer": {"name": "famo"}}, {"name": "kind"}]
    run.config["balancer"] = {"name": "pcgrad"}
    text = _text(run)
    assert "with the weights of epoch 3 of 3." in text
    assert "Stages: outline: epochs 1 to 2; kind: epoch 3." in text


@pytest.mark.parametrize(("cosines", "said"), [([0.5], "none of the 1 step"), ([-0.5, -0.5, 0.5], "2 of the 3 steps")])
def test_opposed_tasks_are_counted(cosines, said):
    looks = [{"step": n, "loss": {"a": 1, "b": 1}, "cosines": [[1, c], [c, 1]]} for n, c in enumerate(cosines)]
    run = past_run(
        {}, looks=looks, config={"balancer": {"name": "pcgrad"}, "stages": [{"balancer": {"name": "famo"}}, {}]}
    )
    assert (
        f"under the balancers famo and pcgrad. Below 0 two tasks pull in opposite directions: so at {said} looked at."
        in (gradient_section(run))
    )


def test_cosines_that_are_no_numbers_were_looked_at():
    look = {"step": 1, "loss": {"a": 1, "b": 1}, "cosines": [[1, math.nan], [math.nan, 1]]}
    assert "gradient was 0 or not finite at every recorded step" in gradient_section(past_run({}, looks=[look]))


def test_groups_that_are_no_patients_are_not_called_so():
    run = past_run({"outline": {"dice": 0.5}}, config={"data": {"group_by": "slide"}})
    text = _text(_with(run, [image(outline=mask(0.5)), image(outline=mask(0.25))]))
    assert "4 held-out images of 2 groups" in text
    assert "Per group" in text
    assert "patient" not in text.lower().replace("patients: 1 to", "")


@pytest.mark.parametrize(
    ("facts", "config", "said"),
    [
        ({"device": "cpu"}, {}, "Fast 9000, 1 thread"),
        ({}, {"training": {"device": "cpu"}}, "Fast 9000, 1 thread"),
        ({"device": "cuda:1"}, {}, "B"),
        ({"device": "cuda"}, {}, "A, B"),
        ({}, {}, "A, B"),
    ],
)
def test_the_device_is_the_one_that_trained(facts, config, said):
    environment = {"processor": "Fast 9000", "threads": 1, "gpus": ["A", "B"]}
    assert what_ran(past_run({}, facts=facts, config=config, environment=environment))["device"] == said


def test_notices_stand_near_the_top_and_many_of_a_kind_are_one():
    many = [f"tile-{number}.png: the mask is {number}x3" for number in range(50)]
    others = [f"<b>{letter}: odd in the way {letter}" for letter in "abcdefghijkl"]
    run = past_run({"outline": {"dice": 1.0}}, summary={"notices": [*many, *others, others[0]]})
    page = render(run)
    assert page.index("<h2>Notices") < page.index("<h2>Tiles to look at")
    assert "50 like this: tile-0.png: the mask is 0x3" in page
    assert "<summary>3 more</summary>" in page
    assert page.count("odd in the way a<") == 1
    assert "<b>a" not in page
    assert "Notices" not in render(past_run({}))
    assert "from the data" in render(past_run({}, facts={"notices": ["from the data"]})), "of a run without its end"


def test_every_name_is_escaped():
    evil = "\"'><img src=x onerror=alert(1)>&amp;\udcff"
    entries = {
        evil: label(evil, "b", classes=(evil, "b", "c")),
        f"{evil}2": mask(0.5),
        f"{evil}3": {"score": 1, "iou": 1},
    }
    entries = {name: one | {"thumbnail": f"tiles/{evil}.jpg"} for name, one in entries.items()}
    scores = {evil: {evil: 0.5, "per_class": {evil: 0.5}, "deep": {evil: {evil: 0.5}}}}
    run = past_run(
        scores,
        name=evil,
        patients=[evil],
        config={evil: evil, "summary": evil, "balancer": {"name": evil}, "model": {"name": evil, evil: evil}},
        facts=dict.fromkeys(("data", "split", "precision"), evil) | {"class_names": [evil], "classes": {evil: [evil]}},
        summary={"notices": [f"{evil}: {evil}"] * 2, "test": {"tasks": scores}},
        environment={"processor": evil, "gpus": [evil], "command": evil, "commit": evil, "fastmtl": evil},
        records=[record(n, scores, stage=f"{evil}{n}", lr=1.0) for n in (1, 2)],
        looks=[{"step": 1, "loss": {evil: 1, "b": 1}, "cosines": [[1, 0], [0, 1]], "weights": [1, 1], "norms": [1, 1]}],
        images=[image(evil, evil, **entries)],
        analyses={
            "images": [{"id": evil, "picture": evil}],
            "saliency": [{"image": 0, "task": evil, "picture": evil}],
            "features": {"maps": [{"stride": evil, "channels": evil, "height": evil, "width": evil, "picture": evil}]},
            "filters": {"count": 1, "shown": 1, "size": [evil, evil], "picture": evil},
        },
        problems=[evil],
        config_text=evil,
    )
    page = render(run)
    page.encode()
    assert "<img src=x" not in page
    assert "onerror" in page
    assert not re.search(r'="[^"]*<', re.sub("<style.*?</style>", "", page, flags=re.S))


def test_an_empty_folder_of_results_is_a_page():
    assert "no scores" in render(PastRun(past_run({}).folder))
