"""What tests stand on: the Triton interpreter where there is no GPU, dirty memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Both are read when triton is imported, so they must stand above all such imports.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# There are as many workers as cores: more threads, here or in what a test starts, would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns that the default flips in 3.10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-case", action="store_true", help="run the first case of every parametrised test")
    parser.addoption("--check-launches", action="store_true", help="run every Triton launch in helpers.triton_checks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--one-case"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        items[:] = list(reversed(first.values()))


@pytest.fixture(autouse=True)
def _checked_launches(request: pytest.FixtureRequest) -> Iterator[None]:
    wanted = request.config.getoption("--check-launches") and os.environ.get("TRITON_INTERPRET") == "1"
    if not wanted or request.node.get_closest_marker("unchecked"):
        yield
        return
    from helpers.triton_checks import checked

    with checked():
        yield


@pytest.fixture
def poisoned_memory(monkeypatch) -> None:
    """`torch.empty` and `empty_like` hand out NaN, or large numbers where there is no NaN: unwritten memory shows."""

    def poison(make):
        def poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.dtype.is_floating_point:
                return tensor.fill_(float("nan"))
            return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max // 3)

        return poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


@pytest.fixture
def two_threads():
    """Two threads for the test, whatever was set before and whatever the test sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
