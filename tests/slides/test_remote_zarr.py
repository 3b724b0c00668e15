"""OME-Zarr stores on servers: equal to local ones, and a server that fails."""

import numpy as np
import pytest
from helpers.remote_slides import forget
from helpers.slides import tissue_like

from fastmtl import data
from fastmtl.data.checks.duplicates import find_duplicates
from fastmtl.data.slides.opened import opened

pytest.importorskip("zarr")

from helpers.zarr_slides import write_zarr

SIZE = (1300, 900)


@pytest.mark.parametrize("options", [{"version": "0.4"}, {"shard": 2}])
def test_an_ome_zarr_store_on_a_server_equals_the_local_one(server, options):
    local = write_zarr(server.folder / "a.zarr", tissue_like(*SIZE), **options)
    url = server.url("a.zarr")
    index = data.index_slide(url)
    forget()
    assert opened(data.find_slides(url).slides["a.zarr"])._index.tissue is not None
    with data.open_slide(url) as slide, data.open_slide(local) as truth:
        assert (slide.levels, slide.mpp) == (truth.levels, truth.mpp)
        assert index.layout.problems == (
            "its chunks on the server are not counted: where one is missing, the fill value is read",
        )
        for level, (x, y) in enumerate([(1100, 700), (100, 0)]):
            expected = truth.read_region(x, y, 333, 222, level)
            np.testing.assert_array_equal(slide.read_region(x, y, 333, 222, level), expected)
        server.failures += [503, 503]  # tried again
        np.testing.assert_array_equal(slide.read_region(0, 0, 20, 20), truth.read_region(0, 0, 20, 20))
    with data.open_slide(url) as slide:
        forget()
        server.failures += [403] * 20
        with pytest.raises(data.SlideError, match="403"):
            slide.read_region(500, 500, 20, 20)
    server.failures.clear()
    with pytest.raises(data.SlideError, match="No such store on the server"):
        data.open_slide(server.url("b.zarr"))


def test_an_ome_zarr_store_of_an_object_store_is_read(store, tmp_path):
    memory, folder = store
    pixels = tissue_like(300, 200)
    memory.put(str(write_zarr(tmp_path / "a.zarr", pixels)), f"{folder}/a.zarr", recursive=True)
    with data.open_slide(f"memory:/{folder}/a.zarr") as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 300, 200), pixels)


def test_copies_on_a_server_are_found(server):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_zarr(server.folder / f"{name}.zarr", tissue_like(*SIZE, seed))
    urls = [server.url(f"{name}.zarr") for name in "abc"]
    path = server.folder / "manifest.csv"
    path.write_text("\n".join(["slide,x,y,width,height", *(f"{url},0,0,64,64" for url in urls)]))
    found = find_duplicates(data.read_dataset(path))
    assert [[str(slide) for slide in same] for same in found.slides] == [urls[:2]]
