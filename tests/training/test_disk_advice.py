"""What the message about a file that cannot be written advises depends on the reason."""

import errno
import os

import pytest
import torch
from helpers.checkpoints import save_checkpoint

from fastmtl.training import checkpoint, disk_policy
from fastmtl.training.disk_policy import DiskError, DiskPolicy
from fastmtl.training.errors import CheckpointError

ADVICE = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space",
    errno.EFBIG: "Raise `ulimit -f`",
    errno.EROFS: "Make the file system writable",
    errno.EACCES: "Change its permissions",
    errno.ELOOP: "Remove the link",
    errno.EIO: "Check the disk and its connection",
    errno.EISDIR: "Remove the cause",
}


@pytest.fixture(params=ADVICE, ids=errno.errorcode.get)
def refusing(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    for module, name in ((checkpoint, "sync"), (disk_policy, "append")):
        monkeypatch.setattr(module, name, refuse)
    return request.param


def test_it_fits_the_reason(refusing, tmp_path):
    ending = f"). {ADVICE[refusing]}, and continue with fastmtl train --resume."
    with pytest.raises(DiskError) as of_record:
        DiskPolicy().append(tmp_path / "metrics.jsonl", "{}\n")
    with pytest.raises(CheckpointError) as of_checkpoint:
        save_checkpoint(tmp_path / "c", {"a": torch.ones(1)})
    for found in (of_record, of_checkpoint):
        assert str(found.value).endswith(ending)
        assert os.strerror(refusing) in str(found.value)


def test_a_training_that_continues_repeats_it_without_the_command(refusing, tmp_path):
    noted, path = [], tmp_path / "). Free space" / "metrics.jsonl"
    disk = DiskPolicy("continue", noted.append)
    if refusing in (errno.EACCES, errno.ELOOP, errno.EISDIR):  # of the folder: continuing would lose everything
        with pytest.raises(DiskError):
            disk.append(path, "{}\n")
        assert noted == disk.notices() == []
        return
    disk.append(path, "{}\n")
    problem = f"{path} cannot be written ({os.strerror(refusing)})"
    cure = ADVICE[refusing][0].lower() + ADVICE[refusing][1:]
    assert noted == [f"note: {problem}. The training continues and tries again (training.on_disk_error): {cure}."]
    assert disk.notices() == [f"1 write failed during the training, first: {problem}"]


def test_a_link_is_to_be_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to(tmp_path / "other")
    with pytest.raises(DiskError, match=r"Remove the link, and continue with fastmtl train --resume\.$"):
        DiskPolicy().append(path, "{}\n")
