"""The documentation as web pages: no broken link, and every public name has its place."""

import importlib.util
import os
import re
import subprocess
import sys
import zlib

import pytest
from helpers.paths import ROOT

import fastmtl
from fastmtl.losses.patching import LIBRARIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    spec = importlib.util.spec_from_file_location("build_pages", ROOT / "docs" / "build_pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    for package in pages.PACKAGES:
        names = dict(pages.public_names(package))
        assert names, package
        assert set(names.values()) <= known, package
    assert dict(pages.public_names("fastmtl")).keys() == fastmtl._HOME.keys()
    for library in LIBRARIES.values():
        assert set(library.losses) <= dict(pages.public_names(f"fastmtl.losses.{library.ours}")).keys()


def test_every_page_of_the_folder_is_in_the_menu(site):
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f'href="{page.relative_to(ROOT / "docs").with_suffix("")}/"' in menu, page


def test_no_page_asks_another_host(site):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8")):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (page, tag)
