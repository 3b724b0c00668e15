"""Every kind of task against its textbook: losses of the labelled samples, metrics, and what missing labels leave."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import tasks
from fastmtl.protocols import Batch

STRUCTURES = ("nothing", "gland", "stroma")


class Queries(NamedTuple):
    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple = ()


def _case(kind: str, count: int = 4):
    """(task, logits, target) of `count` samples, 8 x 8 pixels."""
    source = torch.Generator().manual_seed(len(kind))
    randn = lambda *shape: torch.randn(*shape, generator=source)  # noqa: E731
    randint = lambda high, *shape: torch.randint(high, shape, generator=source)  # noqa: E731
    options = {
        "multilabel_segmentation": {"structures": STRUCTURES},
        "multiclass_segmentation": {"structures": STRUCTURES},
        "regression": {"size": 2, "mean": 3.0, "std": 2.0},
        "contrastive": {"dimensions": 6, "temperature": 0.5},
        "universal_segmentation": {"num_points": 64},
    }.get(kind, {})
    names = {"classification": STRUCTURES, "binary_classification": ("benign", "malignant")}.get(kind, ())
    logits, target = {
        "binary_segmentation": lambda: (randn(count, 1, 8, 8), randint(2, count, 1, 8, 8).byte()),
        "multilabel_segmentation": lambda: (randn(count, 3, 8, 8), randint(2, count, 3, 8, 8).byte()),
        "multiclass_segmentation": lambda: (randn(count, 3, 8, 8), randint(3, count, 1, 8, 8).byte()),
        "universal_segmentation": lambda: (
            Queries(randn(count, 5, 3), randn(count, 5, 4, 4), ((randn(count, 5, 3), randn(count, 5, 4, 4)),)),
            randint(2, count, 1, 8, 8).byte(),
        ),
        "classification": lambda: (randn(count, 3), randint(3, count)),
        "binary_classification": lambda: (randn(count, 1), randint(2, count)),
        "regression": lambda: (randn(count, 2), randn(count, 2) + 3),
        "bounding_box": lambda: (randn(count, 4), torch.rand(count, 4, generator=source)),
        "reconstruction": lambda: (randn(count, 3, 8, 8), torch.zeros(count)),
        "contrastive": lambda: (randn(count, 6), torch.arange(count) ^ 1),
        "auxiliary_segmentation": lambda: (randn(count, 1, 2, 2), randint(2, count, 1, 8, 8).byte()),
    }[kind]()
    return tasks.create_task(kind, "it", 0, class_names=names, **options), logits, target


def _batch(target, has_label=None):
    count = len(target)
    shown = torch.ones(count, dtype=torch.bool) if has_label is None else torch.tensor(has_label)
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, {"it": target}, shown[:, None], {"organ": torch.arange(count)[:, None].float() % 2})


def _scores(task, logits, batch, *further):
    """What the task reports of a batch, and of `further` pairs of logits and batch."""
    metrics = task.metrics()
    for pair in ((logits, batch), *further):
        task.update(metrics, *pair)
    return task.summary(metrics)


LABELLED = [kind for kind in tasks.list_tasks() if kind not in ("reconstruction", "contrastive")]


@pytest.mark.parametrize("kind", tasks.list_tasks())
def test_loss_summary_and_prediction_exist_for_every_kind(kind):
    task, logits, target = _case(kind)
    batch = _batch(target)
    loss = task.loss(logits, batch)
    assert loss.shape == ()
    assert loss.isfinite()
    summary = _scores(task, logits, batch)
    assert not task.primary_metric or isinstance(summary[task.primary_metric], float)
    assert task.predict(logits, batch).shape[0] == len(target)


@pytest.mark.parametrize("kind", [kind for kind in LABELLED if kind != "universal_segmentation"])
def test_unlabelled_samples_take_no_part(kind):
    task, logits, target = _case(kind)
    has_label = [True, False, True, False]
    broken = logits.clone()
    broken[1] = float("nan")
    part = torch.tensor(has_label)
    whole = task.loss(broken, _batch(target, has_label))
    torch.testing.assert_close(whole, task.loss(logits[part], _batch(target[part])))
    assert _scores(task, logits, _batch(target, has_label)) == _scores(task, logits[part], _batch(target[part]))


@pytest.mark.parametrize("kind", LABELLED)
def test_without_labels_the_loss_is_zero_with_a_graph_and_metrics_are_none(kind):
    task, logits, target = _case(kind)
    leaves = [x.requires_grad_() for x in (logits if isinstance(logits, tuple) else (logits,)) if isinstance(x, Tensor)]
    batch = _batch(target, [False] * 4)
    loss = task.loss(logits, batch)
    assert loss.item() == 0
    loss.backward()
    assert all(leaf.grad is not None and (leaf.grad == 0).all() for leaf in leaves)
    assert _scores(task, logits, batch)[task.primary_metric or "dice"] is None


def test_regression_standardises_and_reports_in_the_targets_unit():
    task, logits, target = _case("regression")
    expected = F.mse_loss(logits, (target - 3) / 2)
    torch.testing.assert_close(task.loss(logits, _batch(target)), expected)
    found = _scores(task, logits, _batch(target))
    assert found["mae"] == pytest.approx(F.l1_loss(logits * 2 + 3, target).item())
    assert _scores(task, logits[:1], _batch(target[:1]))["r2"] is None


def test_false_pixels_per_structure():
    """Two images: 3 and 1 false positives and 1 false negative of the first structure, none of the second."""
    task = tasks.create_task("multilabel_segmentation", "it", 0, structures=["a", "b"])
    target = torch.zeros(2, 2, 8, 8, dtype=torch.uint8)
    target[0, 0, 0, :2] = 1
    logits = torch.full((2, 2, 8, 8), -9.0)
    logits[0, 0, 0, 1:5] = 9.0  # one of two found, three too many
    logits[1, 0, 0, 0] = 9.0
    found = _scores(task, logits, _batch(target))
    assert found["fp_to_fn"] == 4.0
    assert found["per_class"]["false_positives"] == {"a": 2.0, "b": 0.0}
    assert found["per_class"]["false_negatives"] == {"a": 0.5, "b": 0.0}
    assert found["per_class"]["fp_to_fn"] == {"a": 4.0, "b": None}
    assert _scores(task, logits[:1], _batch(target[:1]), (logits[1:], _batch(target[1:]))) == found


def test_a_box_in_pixels():
    """Left, top, right and bottom of an image of 256 pixels; predictions and scores stay fractions."""
    task = tasks.create_task("bounding_box", "it", 0, side=256)
    target, edges = torch.tensor([[0.5, 0.25, 0.5, 0.25]]), torch.tensor([[64.0, 32.0, 192.0, 96.0]])
    assert task.loss(torch.zeros(1, 4), _batch(target)).item() == (64**2 + 32**2 + 192**2 + 96**2) / 4
    assert task.loss(edges + 3, _batch(target)).item() == 9
    torch.testing.assert_close(task.predict(edges), target)
    assert _scores(task, edges, _batch(target)) == {"iou": 1.0}
    assert task.predict(-edges).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match="`side` must be above 0"):
        tasks.create_task("bounding_box", "it", 0, side=-1)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("bounding_box", "side"),
        ("regression", "std"),
        ("regression", "mean"),
        ("contrastive", "temperature"),
        ("contrastive", "momentum"),
        ("classification", "label_smoothing"),
    ],
)
@pytest.mark.parametrize("wrong", ["256", True, float("nan")])
def test_an_option_that_is_no_number(kind: str, option: str, wrong: object):
    with pytest.raises(ValueError, match=f"task 'it': `{option}` must be .*; got {wrong!r}"):
        tasks.create_task(kind, "it", 0, class_names=["a", "b"], **{option: wrong})


def test_numbers_of_numpy_are_numbers():
    assert tasks.create_task("regression", "it", 0, std=np.float32(2), mean=np.int64(1)).std == 2


def test_universal_segmentation_leaves_unlabelled_samples_out():
    task, logits, target = _case("universal_segmentation", 2)
    torch.manual_seed(0)
    alone = task.loss(Queries(logits[0][:1], logits[1][:1]), _batch(target[:1]))
    torch.manual_seed(0)
    changed = logits[0].clone()
    changed[1] += 5
    first = task.loss(Queries(changed, logits[1]), _batch(target, [True, False]))
    torch.manual_seed(0)
    second = task.loss(Queries(logits[0], logits[1]), _batch(target, [True, False]))
    assert first == second
    assert first == pytest.approx(alone.item(), rel=0.2)  # the points drawn differ


def test_universal_segmentation_finds_what_a_query_says():
    task = tasks.create_task("universal_segmentation", "it", 0, num_points=64)
    target = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    target[..., 4:] = 1
    masks = torch.where(target == 1, 9.0, -9.0)
    output = Queries(torch.tensor([[[-9.0, 9, -9], [9, -9, -9]]]), torch.cat([masks, -masks], 1))
    assert _scores(task, output, _batch(target))["jaccard"] == 1
    wrong = Queries(output.class_logits, output.mask_logits.flip(1))
    assert task.loss(output, _batch(target)) < 0.3 * task.loss(wrong, _batch(target))


def test_contrastive_pairs_are_the_samplers():
    task, logits, partner = _case("contrastive", 6)
    expected = tasks.Contrastive("it", 0, temperature=0.5).criterion(logits[::2], logits[1::2])
    torch.testing.assert_close(task.loss(logits, _batch(partner)), expected)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])  # row i of the shuffled batch is row shuffled[i] of the other
    back = torch.argsort(shuffled)
    moved = task.loss(logits[shuffled], _batch(back[partner[shuffled]]))
    torch.testing.assert_close(moved, expected)
    single = partner.clone()
    single[4:] = -1
    torch.testing.assert_close(
        task.loss(logits, _batch(single)), task.loss(logits[:4], _batch(partner[:4])), msg="lone samples count"
    )


def test_auxiliary_is_bce_against_the_mask_at_its_stride():
    task, logits, target = _case("auxiliary_segmentation")
    coarse = F.interpolate(target.float(), (2, 2), mode="nearest")
    torch.testing.assert_close(
        task.loss(logits, _batch(target)), F.binary_cross_entropy_with_logits(logits, coarse), rtol=1e-5, atol=1e-6
    )


def _both_accuracies(accuracy, balanced):
    return {"accuracy": pytest.approx(accuracy), "balanced_accuracy": pytest.approx(balanced)}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([0, 0, 0], {"sensitivity": None, "specificity": pytest.approx(2 / 3)} | _both_accuracies(2 / 3, 2 / 3)),
        ([1, 1, 1], {"sensitivity": pytest.approx(1 / 3), "specificity": None} | _both_accuracies(1 / 3, 1 / 3)),
        ([1, 0, 0], {"sensitivity": 1.0, "specificity": 1.0, "auroc": 1.0} | _both_accuracies(1.0, 1.0)),
        ([0, 1, 1], {"sensitivity": 0.0, "specificity": 0.0, "auroc": 0.0} | _both_accuracies(0.0, 0.0)),
        ([1, 1, 0], {"sensitivity": 0.5, "specificity": 1.0, "auroc": 1.0} | _both_accuracies(2 / 3, 0.75)),
    ],
)
def test_a_finding_that_no_sample_or_every_sample_has(target, expected):
    task = tasks.create_task("binary_classification", "it", 0, class_names=("without", "with"))
    logits = torch.tensor([[2.0], [-1.0], [-3.0]])
    assert _scores(task, logits, _batch(torch.tensor(target))) == {"auroc": None} | expected


@pytest.mark.parametrize("empty", ["one", "zero", "skip"])
def test_means_over_images_do_not_depend_on_the_batches(empty):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 2, 8, 8, generator=generator)
    target = (torch.rand(11, 2, 8, 8, generator=generator) < 0.2).byte()
    target[3], target[5, 0], logits[3] = 0, 0, -5
    has_label = [number % 4 != 0 for number in range(11)]
    scores = []
    for image, mask in [(i, m) for i, m, there in zip(logits, target, has_label, strict=True) if there]:
        for found, true in zip(image > 0, mask.bool(), strict=True):
            if true.any() or (empty != "skip" and found.any()):
                scores.append(2 * (found & true).sum().item() / (found.sum() + true.sum()).item())
            elif empty != "skip":
                scores.append({"one": 1.0, "zero": 0.0}[empty])
    for size in (1, 3, 11):
        task = tasks.create_task("multilabel_segmentation", "it", 0, structures=("a", "b"), empty=empty)
        parts = [slice(start, start + size) for start in range(0, 11, size)]
        first, *further = [(logits[some], _batch(target[some], has_label[some])) for some in parts]
        assert _scores(task, *first, *further)["dice"] == pytest.approx(sum(scores) / len(scores))


def test_multiclass_ignores_pixels_and_counts_the_background_on_request():
    target = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    target[..., :2] = 1
    target[..., 2] = 255
    logits = F.one_hot(torch.where(target == 255, 2, target.long())[:, 0], 3).movedim(-1, 1) * 9.0
    task = tasks.create_task("multiclass_segmentation", "it", 0, structures=STRUCTURES)
    found = _scores(task, logits, _batch(target))
    assert found["pixel_accuracy"] == 1
    assert found["per_class"]["dice"] == {"gland": 1.0, "stroma": 1.0}  # an ignored pixel is no false stroma
    half = torch.cat([target, torch.full_like(target, 255)])
    wrong = _scores(task, -logits.repeat(2, 1, 1, 1), _batch(half))
    assert wrong["dice"] < 1  # an image of ignored pixels alone is no perfect one
    assert wrong == _scores(task, -logits, _batch(target))


@pytest.mark.parametrize("kind", ["multiclass_segmentation", "universal_segmentation"])
def test_class_maps_are_scored_by_group_batch_and_policy(kind):
    """The kidney's image is empty and found so; of the lung's half is found."""
    target = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    target[0] = 1
    found = target.clone()
    found[0, :, :, 4:] = 0
    if kind == "multiclass_segmentation":
        output = F.one_hot(found[:, 0].long(), 2).movedim(-1, 1) * 9.0
    else:
        masks = torch.where(found == 1, 9.0, -9.0)
        output = Queries(torch.tensor([[[-9.0, 9, -9], [9, -9, -9]]] * 2), torch.cat([masks, -masks], 1))

    def score(**options):
        groups = {"organ": ("lung", "kidney")}
        task = tasks.create_task(kind, "it", 0, structures=("background", "gland"), groups=groups, **options)
        return _scores(task, output, _batch(target))

    per_group = score(group_by="organ")["per_group"]["jaccard"]
    assert per_group == {"lung": 0.5, "kidney": 1.0}
    assert score()["jaccard"] == 0.75
    assert score(empty="skip")["jaccard"] == 0.5
    assert score(empty="zero")["jaccard"] == 0.25
    assert score(aggregate="batch")["jaccard"] == 0.5


def test_metrics_that_agree_on_the_first_batch_stay_apart():
    task, _, _ = _case("binary_segmentation")
    whole = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    half = whole.clone()
    half[..., 4:] = 0
    everything = torch.full((1, 1, 8, 8), 9.0)
    found = _scores(task, everything, _batch(whole), (everything, _batch(half)))
    assert found["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["jaccard"] == pytest.approx((1 + 1 / 2) / 2)
