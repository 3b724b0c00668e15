"""Replace another library's losses by ours in place: for loops and trainers whose import lines cannot change."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType


@dataclass(frozen=True)
class _Library:
    """A library whose losses can be replaced.

    Attributes:
        package: its name on the package index.
        series: MAJOR.MINOR of the version that our losses are compared with in the tests.
        module: that names the losses, and imports all others that do.
        ours: the module of `fastmtl.losses`.
        losses: the classes that are replaced.
    """

    package: str
    series: str
    module: str
    ours: str
    losses: tuple[str, ...]


LIBRARIES = {
    "monai": _Library(
        "monai",
        "1.6",
        "monai.losses",
        "monai",
        ("DiceLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceLoss", "TverskyLoss", "FocalLoss"),
    ),
    "smp": _Library(
        "segmentation-models-pytorch",
        "0.6",
        "segmentation_models_pytorch.losses",
        "smp",
        ("DiceLoss", "JaccardLoss", "FocalLoss", "SoftBCEWithLogitsLoss"),
    ),
    "nnunet": _Library(
        "nnunetv2",
        "2.8",
        "nnunetv2.training.loss.compound_losses",
        "nnunet",
        ("DC_and_CE_loss", "DC_and_BCE_loss"),
    ),
}

_Place = tuple[ModuleType, str]
_replaced: dict[str, dict[_Place, tuple[type, type]]] = {}  # library -> place -> theirs, ours


@dataclass(frozen=True)
class Patched:
    """What `patch` did.

    Attributes:
        library: its name.
        version: the installed version.
        losses: the names of the replaced classes.
        places: "module.name" of every reference that was replaced.
        kept: "module.Class" of the library's own subclasses of replaced classes, which stay as they are.
    """

    library: str
    version: str
    losses: tuple[str, ...]
    places: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        kept = f"; unchanged subclasses: {', '.join(self.kept)}" if self.kept else ""
        count = len({place.rpartition(".")[0] for place in self.places})
        modules = "1 module" if count == 1 else f"{count} modules"
        return f"{self.library} {self.version}: {', '.join(self.losses)} replaced in {modules}{kept}"


def patch(library: str, *, any_version: bool = False, verbose: bool = True) -> Patched:
    """Replace the losses of an installed library by the equal ones of `fastmtl.losses`, until `unpatch`.

    Every module of the process that has one of the classes, under whatever name, then has ours: the library's own,
    those of trainers that imported it before, `__main__`. Objects that exist stay what they are, and so do subclasses
    and references inside functions, lists or other objects; call it before the loop is built. A second call replaces
    what was imported since.

    Args:
        library: "monai", "smp" or "nnunet".
        any_version: accept a version that our losses were not compared with.
        verbose: print what was replaced, on standard error.

    Raises:
        ValueError: another library, or a version that our losses were not compared with.
        ImportError: the library is not installed, or lacks one of the classes.
    """
    one = _library(library)
    installed = _installed(one) if any_version else check_version(library, ", or accept it with any_version=True")
    ours = importlib.import_module(f"fastmtl.losses.{one.ours}")
    found = _replaced.setdefault(library, {})
    originals = _originals(one, found)
    replacements = {id(theirs): getattr(ours, theirs.__name__) for theirs in originals}
    for module, name, value in _references():
        if id(value) in replacements:
            found[module, name] = value, replacements[id(value)]
            setattr(module, name, replacements[id(value)])
    others = [sub for theirs in originals for sub in _subclasses(theirs) if id(sub) not in replacements]
    done = Patched(
        library,
        installed,
        one.losses,
        tuple(sorted(f"{module.__name__}.{name}" for module, name in found)),
        tuple(sorted({f"{sub.__module__}.{sub.__name__}" for sub in others})),
    )
    if verbose:
        print(f"fastmtl: {done}", file=sys.stderr)
    return done


def unpatch(library: str | None = None) -> None:
    """Undo `patch`, of one library or of all; what has been replaced again since stays.

    Raises:
        ValueError: no such library.
    """
    for name in [library] if library is not None else list(_replaced):
        _library(name)
        for (module, attribute), (theirs, ours) in _replaced.pop(name, {}).items():
            if getattr(module, attribute, None) is ours:
                setattr(module, attribute, theirs)


def check_version(library: str, alternative: str = "") -> str:
    """The installed version of a library of `LIBRARIES`.

    Args:
        library: its name there.
        alternative: what the caller offers instead of the right version, as the end of the error.

    Raises:
        ValueError: another library, or a version that our losses were not compared with.
        ImportError: the library is not installed.
    """
    one = _library(library)
    installed = _installed(one)
    if installed.split(".")[:2] != one.series.split("."):
        raise ValueError(
            f"{one.package} {installed} is installed; the losses are compared with {one.series}, and another version "
            f"may compute something else. Install {one.package}=={one.series}.*{alternative}"
        )
    return installed


def _installed(one: _Library) -> str:
    try:
        return version(one.package)
    except PackageNotFoundError:
        raise ImportError(f"{one.package} is not installed: there is nothing to replace") from None


def _library(name: str) -> _Library:
    if name not in LIBRARIES:
        raise ValueError(f"`library` must be one of {', '.join(LIBRARIES)}; got {name!r}")
    return LIBRARIES[name]


def _originals(library: _Library, replaced: Mapping[_Place, tuple[type, type]]) -> list[type]:
    """The library's own classes, also of those that are replaced already."""
    module = importlib.import_module(library.module)
    before = {theirs.__name__: theirs for theirs, _ in replaced.values()}
    if missing := [name for name in library.losses if not hasattr(module, name)]:
        raise ImportError(f"{library.package} has no {missing[0]}: it is another version than {library.series}")
    return [before[name] if name in before else getattr(module, name) for name in library.losses]


def _subclasses(of: type) -> Iterator[type]:
    for sub in of.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _references() -> list[tuple[ModuleType, str, type]]:
    """The classes that modules of this process name, except fastmtl's."""
    return [
        (module, name, value)
        for place, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and place.partition(".")[0] != "fastmtl"
        for name, value in list(vars(module).items())
        if issubclass(type(value), type)  # isinstance would ask lazy objects for their class
    ]
