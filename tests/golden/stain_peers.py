"""Makes stain_peers.json: what StainTools, TIAToolbox, cuCIM and HistomicsTK make of two drawn tiles.

They want another torch, a GPU or a hundred packages, for a few functions of NumPy. So their wheels are unpacked and
those functions are run alone; cuCIM's CuPy calls are answered by NumPy. To make the numbers anew, in a fresh folder:

    python -m venv v && v/bin/pip install numpy opencv-python-headless scikit-image scikit-learn scipy spams-bin torch
    pip download --no-deps -d dl staintools==2.1.2 tiatoolbox==2.1.3 histomicstk==1.4.0 cucim-cu12==26.10.0
    mkdir u && cd u && for f in ../dl/*.whl; do unzip -qo $f '*.py'; done && tar xzf ../dl/staintools-2.1.2.tar.gz && cd
    .. PYTHONPATH=FASTMTL:FASTMTL/tests v/bin/python FASTMTL/tests/golden/stain_peers.py u
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import sys
import types
from pathlib import Path

import numpy as np
from helpers.stain import tissue

STRIDE = 16  # of the pixels that are kept


def functions(path: Path, names: tuple[str, ...], scope: dict) -> dict:
    """Some functions of a file, run in `scope`: its other imports are not needed."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") in names]
    exec(compile(ast.unparse(tree), str(path), "exec"), scope)
    return scope


def package(name: str, path: Path | None = None) -> types.ModuleType:
    """An empty package of that name, so that its own __init__ does not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(path)] if path else []
    sys.modules[name] = module
    return module


def numpy_as_cupy() -> None:
    module = types.ModuleType("cupy")
    module.__dict__.update(np.__dict__)
    module.fuse = lambda: lambda function: function
    module.asnumpy = np.asarray
    sys.modules["cupy"] = module


def staintools(folder: Path, source: np.ndarray, target: np.ndarray) -> dict:
    sys.path.insert(0, str(folder / "staintools-2.1.2"))
    package("staintools", folder / "staintools-2.1.2" / "staintools")
    normalizer = importlib.import_module("staintools.stain_normalizer").StainNormalizer
    found = {}
    for method in ("macenko", "vahadane"):
        one = normalizer(method)
        one.fit(target.copy())
        found[method] = entry(one.transform(source.copy()), one.extractor.get_stain_matrix(source.copy()).T)
    reinhard = importlib.import_module("staintools.reinhard_color_normalizer").ReinhardColorNormalizer()
    reinhard.fit(target)
    found["reinhard"] = entry(reinhard.transform(source))
    standardizer = importlib.import_module("staintools.preprocessing.luminosity_standardizer").LuminosityStandardizer
    found["luminosity"] = entry(standardizer.standardize(source))
    return found


def tiatoolbox(folder: Path, source: np.ndarray, target: np.ndarray) -> dict:
    import cv2
    from skimage import exposure

    root = package("tiatoolbox", folder / "tiatoolbox")
    root.logger = logging.getLogger("tiatoolbox")
    package("tiatoolbox.utils")
    scope = {"np": np, "cv2": cv2, "exposure": exposure}
    parts = {
        "misc": ("contrast_enhancer", "get_luminosity_tissue_mask"),
        "transforms": ("rgb2od", "od2rgb"),
    }
    for name, names in parts.items():
        module = package(f"tiatoolbox.utils.{name}")
        module.__dict__.update(functions(folder / "tiatoolbox" / "utils" / f"{name}.py", names, dict(scope)))
    sys.modules["tiatoolbox.utils.misc"].load_stain_matrix = None
    package("tiatoolbox.utils.exceptions").MethodNotSupportedError = Exception
    package("tiatoolbox.tools", folder / "tiatoolbox" / "tools")
    stainnorm = importlib.import_module("tiatoolbox.tools.stainnorm")
    found = {}
    for method, kind in (("macenko", "Macenko"), ("ruifrok", "Ruifrok"), ("reinhard", "Reinhard")):
        one = getattr(stainnorm, f"{kind}Normalizer")()
        one.fit(target.copy())
        vectors = one.extractor.get_stain_matrix(source.copy()).T if method != "reinhard" else None
        found[method] = entry(one.transform(source.copy()), vectors)
    return found


def cucim(folder: Path, source: np.ndarray, target: np.ndarray) -> dict:
    numpy_as_cupy()
    scope: dict = {"__name__": "stain_normalizer"}
    exec((folder / "cucim/core/operations/color/stain_normalizer.py").read_text(), scope)
    vectors = scope["stain_extraction_pca"](source, channel_axis=2)
    return {"macenko": entry(scope["normalize_colors_pca"](source, channel_axis=2), vectors)}


def histomicstk(folder: Path, source: np.ndarray, target: np.ndarray) -> dict:
    base = folder / "histomicstk"
    package("histomicstk", base)
    utils = package("histomicstk.utils")
    for name in ("convert_image_to_matrix", "convert_matrix_to_image", "exclude_nonfinite"):
        setattr(utils, name, functions(base / "utils" / f"{name}.py", (name,), {"np": np, "numpy": np})[name])
    utils.__getattr__ = lambda name: None  # what is imported beside and never called
    package("histomicstk.preprocessing", base / "preprocessing")
    colour = importlib.import_module("histomicstk.preprocessing.color_normalization")
    deconvolution = importlib.import_module("histomicstk.preprocessing.color_deconvolution")
    conversion = importlib.import_module("histomicstk.preprocessing.color_conversion")
    vectors = deconvolution.stain_unmixing_routine(source)[:, :2]
    # Its third vector is taken before the stains are put in order, and may point away from its target's third.
    whole = deconvolution.complement_stain_matrix(vectors)
    mean, spread = conversion.lab_mean_std(target)
    return {
        "macenko": entry(colour.deconvolution_based_normalization(source, W_source=whole), vectors),
        "reinhard": entry(colour.reinhard(source, mean, spread)),
    }


def entry(image: np.ndarray, vectors: np.ndarray | None = None) -> dict:
    found = {"pixels": np.asarray(image).reshape(-1, 3)[::STRIDE].astype(int).tolist()}
    return found if vectors is None else found | {"vectors": np.asarray(vectors).round(5).tolist()}


def main(folder: Path) -> None:
    source, target = (tissue(seed, 48)[0].permute(1, 2, 0).numpy().copy() for seed in (1, 2))
    made: dict = {"source_sum": int(source.sum()), "target_sum": int(target.sum())}
    for peer in (staintools, tiatoolbox, histomicstk, cucim):
        made[peer.__name__] = peer(folder, source, target)
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps(made) + "\n", encoding="utf-8")
    print(f"wrote {out}, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
