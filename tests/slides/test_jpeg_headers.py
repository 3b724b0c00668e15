"""Headers of JPEG streams, of which those of a slide's tiles are remembered: the plain parse says the same."""

import io

import numpy as np
import pytest
from helpers.slides import tissue_like
from PIL import Image

from fastmtl.data.slides import jpeg


def _stream(size=(64, 48), comment=b"", **options):
    written = io.BytesIO()
    Image.fromarray(tissue_like(*size)).save(written, "JPEG", **options)
    stream = written.getvalue()
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment if comment else b""
    return stream[:2] + segment + stream[2:]


CASES = {
    "plain": _stream(),
    "progressive": _stream(progressive=True),
    "optimised": _stream(optimize=True),
    "a comment like a scan": _stream(comment=b"\xff\xda\x00\x08fake scan header"),
    "a comment like a scan with its end": _stream(comment=b"\xff\xda\x00\x02\xff\xd9"),
    "a long header": _stream(comment=bytes(range(256)) * 8),
    "no picture": _stream()[:200],
    "ends in the scan's header": _stream()[: _stream().find(b"\xff\xda") + 6],
    "no marker": b"\xff\xd8" + bytes(100),
    "empty": b"",
}


def _said(read, *arguments):
    try:
        return read(*arguments)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("room", [0, 37])
def test_remembered_headers_are_those_of_a_plain_parse(case, room):
    stream = bytearray(room) + CASES[case]
    for _ in range(2):  # the second time it is remembered
        assert _said(jpeg.read_header, stream, room + 2) == _said(jpeg._read_header, stream, room + 2)


def test_one_size_after_another():
    sizes = [(16, 16), (64, 48), (16, 16), (48, 64)]
    found = [jpeg.read_header(_stream(size), 2) for size in sizes]
    assert [(one.width, one.height) for one in found] == sizes


def test_random_damage_says_the_same():
    rng = np.random.default_rng(0)
    whole = CASES["a comment like a scan"]
    for _ in range(500):
        stream = bytearray(whole[: int(rng.integers(2, len(whole)))])
        for at in rng.integers(2, min(len(stream), 700) + 1, 3).tolist():
            if at < len(stream):
                stream[at] = int(rng.choice([0, 0xDA, 0xFF, rng.integers(256)]))
        assert _said(jpeg.read_header, stream, 2) == _said(jpeg._read_header, stream, 2)
