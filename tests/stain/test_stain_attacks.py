"""Stain normalisation with invalid numbers, layouts and files."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from helpers.stain import tissue

from fastmtl import data, ops
from fastmtl.data.stain.files import write_arrays
from fastmtl.reference.stain_conventions import HEMATOXYLIN_EOSIN

GOOD = torch.tensor(HEMATOXYLIN_EOSIN)
NAN, INF = float("nan"), float("inf")
BAD_STAINS = [GOOD * NAN, GOOD * INF, GOOD * 0, GOOD[:, :1].expand(3, 2)]


@pytest.mark.parametrize("vectors", BAD_STAINS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_known_stains_must_be_two(vectors, backend):
    with pytest.raises(ValueError, match="`stain_matrix` must hold two different"):
        ops.stain_normalize(tissue(), stain_matrix=vectors, backend=backend)
    with pytest.raises(ValueError, match="`target` must hold"):
        ops.stain_normalize(tissue(), target=(vectors, [1, 1]), backend=backend)


@pytest.mark.parametrize("vectors", BAD_STAINS)
@pytest.mark.parametrize("convention", ["torchstain", "staintools", "histomicstk"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_where_nobody_may_look_they_fall_back(vectors, convention, backend):
    """As under torch.compile and on a GPU, where the host does not read the numbers."""
    target = GOOD.double()[None], torch.ones(1, 2, dtype=torch.float64)
    run = ("macenko", convention, torch.float32, None, None, True, 256, "pass", backend)
    images = tissue()
    for maxima in (None, target[1]):
        made = torch.ops.fastmtl.stain_normalize(images, None, vectors.double()[None], maxima, *target, *run)
        assert made[1].all()
        assert torch.equal(made[0], images.float())


@pytest.mark.parametrize("amounts", [[NAN, 1], [INF, 1], [0, 1], [-1, 1]])
def test_known_amounts_must_be_finite_and_some(amounts):
    with pytest.raises(ValueError, match="max_concentration"):
        ops.stain_normalize(tissue(), stain_matrix=GOOD, max_concentration=torch.tensor(amounts))


@pytest.mark.parametrize("std", [1e-6, 1e-300, 5e-324])
def test_no_statistics_overflow_half_precision(std):
    with pytest.raises(ValueError, match="overflow"):
        ops.stain_normalize(tissue(), mean=(0.5,) * 3, std=(std,) * 3, dtype=torch.float16)
    least = ops.stain_normalize(tissue(), mean=(0.0,) * 3, std=(1e-4,) * 3, dtype=torch.float16)
    assert least.isfinite().all()


@pytest.mark.long
def test_crops_of_interleaved_tiles_keep_their_strides_when_compiled():
    images = tissue(number=2).permute(0, 2, 3, 1).contiguous()[:, 3:40, 5:50]
    compiled = torch.compile(ops.stain_normalize, fullgraph=True, backend="aot_eager")(images)
    expected = ops.stain_normalize(images)
    assert torch.equal(compiled, expected)
    assert compiled.stride() == expected.stride()
    options = ("macenko", "torchstain", torch.uint8, None, None, True, 50, "reference", "auto")
    target = GOOD.double()[None], torch.ones(1, 2, dtype=torch.float64)
    crop = images.permute(0, 3, 1, 2)
    torch.library.opcheck(torch.ops.fastmtl.stain_normalize.default, (crop, None, None, None, *target, *options))


def test_draws_and_slides_that_are_none():
    normalizer = data.StainNormalizer(per="tile")
    for value in (NAN, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"`draws` must lie in 0..1"):
            normalizer.transform(tissue(), draws=torch.full((1, 4), value))
    with pytest.raises(TypeError, match="`slides` must be a list"):
        normalizer.transform(tissue(), slides=3)


@pytest.mark.parametrize(
    "change",
    [
        {"vectors": np.full((1, 3, 2), NAN)},
        {"vectors": np.ones((1, 2, 3))},
        {"maxima": np.zeros((1, 2))},
        {"maxima": np.ones((1, 3))},
    ],
)
def test_a_normaliser_of_damaged_stains_is_not_loaded(tmp_path, change):
    path, normalizer = tmp_path / "n.npz", data.StainNormalizer()
    assert normalizer.fit_slide("a", tissue(number=2))
    normalizer.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **change})
    with pytest.raises(data.StainFileError, match="damaged"):
        data.StainNormalizer.load(path)


def test_threads_may_write_one_file_at_once(tmp_path):
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(20):
                write_arrays(tmp_path / "s.npz", {"kind": np.array("k"), "a": np.arange(5000)})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("convention", ["torchstain", "tiatoolbox", "histomicstk"])
def test_a_normaliser_goes_to_a_spawned_worker(convention):
    normalizer, images = data.StainNormalizer(convention=convention), tissue(number=2)
    normalizer.fit_slide("a", images)
    again = pickle.loads(pickle.dumps(normalizer))
    assert torch.equal(again(images, slides=["a", ""]), normalizer(images, slides=["a", ""]))


@pytest.mark.parametrize("key", ["", 3, None])
def test_a_slide_has_a_name(key):
    with pytest.raises(ValueError, match="`key`"):
        data.StainNormalizer().fit_slide(key, tissue())


@pytest.mark.parametrize("columns", [1.5, "2", 0])
def test_columns_are_whole(columns):
    with pytest.raises(ValueError, match="`columns` must be a whole number"):
        data.mosaic_target(tissue(number=2), columns=columns)


@pytest.mark.parametrize(
    ("dtype", "words"), [("object", "an array of"), (">u2", "an array of"), ("int16", r"already 0\.\.255")]
)
def test_arrays_of_other_kinds(dtype, words):
    with pytest.raises(ValueError, match=words):
        data.StainNormalizer().transform(np.zeros((8, 8, 3), dtype))
