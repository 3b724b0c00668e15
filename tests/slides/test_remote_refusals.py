"""Addresses of slides that are refused, and servers that cannot give a slide: the reason in one line."""

from pathlib import Path

import pytest
from helpers.remote_slides import forget, write_slide

from fastmtl import data

pytestmark = pytest.mark.usefixtures("quick")


def test_what_cannot_be_read_is_refused_with_the_reason(server, tmp_path):
    write_slide(server.folder)
    with pytest.raises(data.SlideError, match="No such file on the server"):
        data.open_slide(server.url("absent.tiff"))
    (server.folder / "words.mrxs").write_text("no slide of ours")
    with pytest.raises(data.SlideError, match="only OpenSlide reads, from local files alone; copy it"):
        data.open_slide(server.url("words.mrxs"))
    (server.folder / "empty.svs").write_bytes(b"")
    with pytest.raises(data.SlideError, match="the file is empty"):
        data.open_slide(server.url("empty.svs"))
    server.failures[:] = [403]
    forget()
    with pytest.raises(data.SlideError, match=r"403 .*netrc"):
        data.open_slide(server.url("a.tiff"))
    server.ranges = False
    forget()
    with pytest.raises(data.SlideError, match="whole files instead of ranges of bytes; copy the slide"):
        data.open_slide(server.url("a.tiff"))
    with pytest.raises(data.SlideError, match=r"cannot be reached.*6 tries"):
        data.open_slide("http://127.0.0.1:9/a.svs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file:///a.svs", "without file:"),
        ("s3://bucket//a.svs", "empty part"),
        ("s3://bucket/../a.svs", "empty part, '.' or '..'"),
        ("local://a.svs", "without local:"),
        ("https://me:secret@host/a.svs", "~/.netrc"),
        ("https://me:secret@host//a.svs", "~/.netrc"),
        (Path("HTTPS://me:secret@host/a.svs"), "~/.netrc"),
        ("https://host/a#b.svs", "%23"),
    ],
)
def test_addresses_that_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason) as found:
        data.open_slide(text)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    "address", ["ftp://me:secret@host/a", f"http://me:secret@{'a' * 70}.\u00fc./a", "http://:99999/"]
)
def test_a_redirection_to_no_web_server_is_refused_without_its_address(server, address):
    write_slide(server.folder)
    server.failures[:] = [address.encode().decode("latin-1")] * 6
    with pytest.raises(data.SlideError, match="is not a valid address, or redirects to none") as found:
        data.open_slide(server.url("a.tiff"))
    assert "secret" not in str(found.value)


def test_slides_whose_results_would_have_one_name_are_refused(tmp_path):
    rows = ["slide", "http://host:80/a.svs", "http://host:80/a.svs", "http/host-80/a.svs"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"line 4.* and http://host:80/a\.svs would have the same name"):
        data.find_slides(tmp_path / "rows.csv")


def test_only_slides_of_a_manifest_may_be_on_a_server(server, tmp_path):
    table = tmp_path / "manifest.csv"
    table.write_text(f"image,label\n{server.url('a.png')},x\n")
    with pytest.raises(ValueError, match=r"line 2: http.* is on a server, from which only slides are read; copy it"):
        data.read_manifest(table)


def test_an_absent_slide_of_a_server_is_one_damaged_row(server, tmp_path):
    write_slide(server.folder)
    table = tmp_path / "manifest.csv"
    table.write_text(f"slide,patient\n{server.url('a.tiff')},P1\n{server.url('b.tiff')},P2\n")
    found = data.read_manifest(table, data.ManifestOptions(grid=data.GridOptions(256, min_tissue=0.0)))
    problems = data.check_tiles(found.tiles)
    assert [str(problem.path) for problem in problems] == [server.url("b.tiff")]
    assert "does not exist" in problems[0].reason
