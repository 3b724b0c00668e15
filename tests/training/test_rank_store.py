"""The ranks of a restart find each other, not what an earlier start has left in the launcher's store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fastmtl.rank_store import open_store


@pytest.fixture
def launcher(monkeypatch):
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    for name, value in {"ADDR": "localhost", "PORT": str(store.port)}.items():
        monkeypatch.setenv(f"MASTER_{name}", value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


def _open_both():
    """Rank 1 comes first, as after a restart it may."""
    with ThreadPoolExecutor(2) as ranks:
        second = ranks.submit(open_store, 1, 2, 20.0)
        return ranks.submit(open_store, 0, 2, 20.0).result(), second.result()


def test_a_restart_gets_a_new_store(launcher, capfd):
    first, _ = _open_both()
    first.store.set("address of rank 1", "of a process that has been killed")
    place = first.port
    del first, _
    zero, one = _open_both()
    assert zero.port == one.port != place
    assert not one.store.check(["address of rank 1"])
    zero.store.set("key", "value")
    assert one.store.get("key") == b"value"
    assert not capfd.readouterr().err, "torch would log the closed port of the earlier start, with a long trace"


def test_a_store_of_someone_else_at_the_old_port_is_refused(launcher):
    other = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    other.set("token", "of another start")
    launcher.set("fastmtl store", f"{other.port} token")
    zero, one = _open_both()
    assert zero.port == one.port != other.port


def test_without_rank_0_the_others_give_up(launcher):
    with pytest.raises(dist.DistError):
        open_store(1, 2, 0.5)
    other = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    launcher.set("fastmtl store", f"{other.port} token")
    with pytest.raises(dist.DistError, match=r"rank 0 has opened no store on localhost in 0\.5 s"):
        open_store(1, 2, 0.5)
