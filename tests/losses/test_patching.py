"""fastmtl.patch: a library's losses are replaced wherever they are named, and come back."""

import importlib.metadata
import sys
import types

import pytest
import torch

import fastmtl
from fastmtl.losses import monai as our_monai
from fastmtl.losses import nnunet as our_nnunet
from fastmtl.losses import patching
from fastmtl.losses import smp as our_smp
from fastmtl.utils.torchvision_guard import make_torchvision_importable


@pytest.fixture(autouse=True)
def _restored():
    yield
    fastmtl.unpatch()


@pytest.fixture
def importer(monkeypatch):
    """A module of somebody's loop, imported before the patch."""
    module = types.ModuleType("somebodys_loop")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def monai(importer):
    losses = pytest.importorskip("monai.losses")
    importer.Dice, importer.Both = losses.DiceLoss, losses.DiceCELoss
    return losses


def test_monais_losses_are_replaced_wherever_they_are_named(monai, importer, capsys):
    theirs = {name: getattr(monai, name) for name in patching.LIBRARIES["monai"].losses}
    assert all(one.__module__.startswith("monai.") for one in theirs.values())
    done = fastmtl.patch("monai")
    for name in theirs:
        assert getattr(monai, name) is getattr(our_monai, name)
    assert importer.Dice is our_monai.DiceLoss
    assert importer.Both is our_monai.DiceCELoss
    assert {"somebodys_loop.Dice", "somebodys_loop.Both", "monai.losses.DiceLoss"} <= set(done.places)
    assert "monai.losses.dice.MaskedDiceLoss" in done.kept
    said = capsys.readouterr().err
    assert said == f"fastmtl: {done}\n"
    assert "DiceLoss, DiceCELoss" in said
    fastmtl.unpatch("monai")
    for name, one in theirs.items():
        assert getattr(monai, name) is one
    assert importer.Dice is theirs["DiceLoss"]


def test_a_loop_computes_the_same_after_the_patch(monai, importer):
    logits = torch.randn(2, 3, 16, 16)
    target = torch.randint(0, 3, (2, 1, 16, 16))
    before = importer.Both(to_onehot_y=True, softmax=True)(logits, target)
    fastmtl.patch("monai", verbose=False)
    loss = importer.Both(to_onehot_y=True, softmax=True)
    assert type(loss) is our_monai.DiceCELoss
    torch.testing.assert_close(loss(logits, target), before)


def test_a_second_call_replaces_what_was_imported_since(monai, importer):
    original = monai.FocalLoss
    first = fastmtl.patch("monai", verbose=False)
    importer.Late = original
    second = fastmtl.patch("monai", verbose=False)
    assert importer.Late is our_monai.FocalLoss
    assert set(second.places) - set(first.places) == {"somebodys_loop.Late"}
    fastmtl.unpatch()
    assert importer.Late is monai.FocalLoss is original


def test_what_was_replaced_again_since_stays(monai, importer):
    fastmtl.patch("monai", verbose=False)
    importer.Dice = dict
    fastmtl.unpatch()
    assert importer.Dice is dict


def test_two_libraries_with_a_loss_of_one_name(monai):
    make_torchvision_importable()
    smp = pytest.importorskip("segmentation_models_pytorch.losses")
    theirs = monai.DiceLoss, smp.DiceLoss
    for _ in range(2):
        fastmtl.patch("monai", verbose=False)
        fastmtl.patch("smp", verbose=False)
    assert (monai.DiceLoss, smp.DiceLoss) == (our_monai.DiceLoss, our_smp.DiceLoss)
    fastmtl.unpatch("smp")
    assert (monai.DiceLoss, smp.DiceLoss) == (our_monai.DiceLoss, theirs[1])
    fastmtl.unpatch()
    assert (monai.DiceLoss, smp.DiceLoss) == theirs


def test_nnunets_trainers_that_imported_the_losses_before(importer, monkeypatch):
    """With a package of nnU-Net's names, as nnU-Net itself is not among the tests' packages."""
    names = ["nnunetv2", "nnunetv2.training", "nnunetv2.training.loss", "nnunetv2.training.loss.compound_losses"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    compound = sys.modules[names[-1]]
    for name in ("DC_and_CE_loss", "DC_and_BCE_loss"):
        setattr(compound, name, type(name, (), {"__module__": names[-1]}))
    importer.DC_and_CE_loss = compound.DC_and_CE_loss
    versions = {"nnunetv2": "2.8.1"}
    monkeypatch.setattr(patching, "version", lambda name: versions.get(name) or importlib.metadata.version(name))
    assert "DC_and_CE_loss, DC_and_BCE_loss replaced in 2 modules" in str(fastmtl.patch("nnunet", verbose=False))
    assert importer.DC_and_CE_loss is our_nnunet.DC_and_CE_loss
    fastmtl.unpatch()
    del compound.DC_and_BCE_loss
    with pytest.raises(ImportError, match=r"nnunetv2 has no DC_and_BCE_loss: it is another version than 2\.8"):
        fastmtl.patch("nnunet")


def test_other_versions_are_refused_unless_accepted(monai, monkeypatch):
    original = monai.DiceLoss
    monkeypatch.setattr(patching, "version", lambda name: "1.60.0")
    with pytest.raises(ValueError, match=r"monai 1\.60\.0 is installed; .* compared with 1\.6.*any_version=True"):
        fastmtl.patch("monai")
    assert monai.DiceLoss is original
    assert fastmtl.patch("monai", any_version=True, verbose=False).version == "1.60.0"
    assert monai.DiceLoss is our_monai.DiceLoss


def test_a_version_is_refused_without_an_option_that_the_caller_lacks(monkeypatch):
    monkeypatch.setattr(patching, "version", lambda name: "2.9.0")
    with pytest.raises(ValueError, match=r"nnunetv2 2\.9\.0 is installed; .* Install nnunetv2==2\.8\.\*$"):
        patching.check_version("nnunet")


@pytest.mark.parametrize("call", [fastmtl.patch, fastmtl.unpatch])
def test_other_libraries_are_refused(call):
    with pytest.raises(ValueError, match="`library` must be one of monai, smp, nnunet; got 'keras'"):
        call("keras")


def test_a_library_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(patching, "version", missing)
    with pytest.raises(ImportError, match="segmentation-models-pytorch is not installed: there is nothing to replace"):
        fastmtl.patch("smp")


def test_classes_that_cannot_be_hashed_or_asked_are_passed_over(monai, importer):
    def refused(*_arguments):
        raise RuntimeError("compared, or asked for its class")

    odd = type("Odd", (type,), {"__eq__": refused, "__hash__": None})
    importer.Odd, importer.lazy = odd("One", (), {}), type("Lazy", (), {"__class__": property(refused)})()
    fastmtl.patch("monai", verbose=False)
    assert importer.Dice is our_monai.DiceLoss
