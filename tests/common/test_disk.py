import errno
import os
import pickle
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sona_pipeline.common.disk import DiskFullError, check_readable, disk_explained, make_folder
from sona_pipeline.common.files import only_run, write_bytes, write_with
from sona_pipeline.detection.detector import Detector, save_detector
from sona_pipeline.training.state import save_state


@contextmanager
def files_up_to(size: int):
    """No file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_by_its_folder_and_nothing_is_left(tmp_path, number):
    def write(partial):
        partial.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full"):
        write_with(tmp_path / "a.bin", write)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_to_other_processes():
    error = pickle.loads(pickle.dumps(DiskFullError(Path("a/b"), "is full")))
    assert (str(error), error.folder, error.what) == ("the disk of a/b is full", Path("a/b"), "is full")


def test_the_full_disk_may_be_another_one(tmp_path):
    (tmp_path / "other").mkdir()
    with (
        pytest.raises(DiskFullError, match=f"the disk of {tmp_path}/other is full"),
        disk_explained(tmp_path / "here"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "other" / "x"))


@pytest.mark.parametrize("what", ["state", "detector"])
def test_weights_that_find_no_room_are_told_and_leave_nothing_but_the_old_ones(tmp_path, what):
    path = tmp_path / ("model.safetensors" if what == "detector" else "state.safetensors")
    path.write_bytes(b"old")
    with files_up_to(5000), pytest.raises(DiskFullError, match=f"the disk of {tmp_path} takes no file of that size"):
        if what == "detector":
            save_detector(Detector(["a", "b"]), tmp_path)
        else:
            save_state(path, {"weights": torch.zeros(10_000)})
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {path.name: b"old"}


def test_other_errors_of_safetensors_stay_what_they_are(tmp_path):
    with pytest.raises(SafetensorError, match="header"), disk_explained(tmp_path):
        raise SafetensorError("invalid header")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "plain", b"")
        write_with(tmp_path / "weights", lambda path: save_file({"a": torch.zeros(1)}, path))
        save_state(tmp_path / "state", {"a": torch.zeros(1)})
        save_detector(Detector(["a", "b"]), tmp_path / "detector")
    finally:
        os.umask(before)
    for path in [*tmp_path.iterdir(), *(tmp_path / "detector").iterdir()]:
        wanted = mode | (0o111 & ~mask) if path.is_dir() else mode
        assert path.stat().st_mode & 0o777 == wanted, path


def test_what_may_not_be_read_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("")
    check_readable(tmp_path, tmp_path / "a", tmp_path / "nowhere")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "a")
    with pytest.raises(PermissionError, match=f"{tmp_path}/a may not be read by this account"):
        check_readable(tmp_path, tmp_path / "a")


def test_a_folder_cannot_be_where_a_file_is(tmp_path):
    (tmp_path / "a").write_text("")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(NotADirectoryError, match=f"{folder} cannot be a folder, since a file is there"):
            make_folder(folder)


def test_names_as_long_as_disks_take_them_can_be_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    write_bytes(path, b"content")
    assert [one.name for one in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_is_run_on_with_a_word(tmp_path, monkeypatch, caplog, number):
    import fcntl

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_run(tmp_path):
        assert f"the disk of {tmp_path} has no file locks" in caplog.text


def test_a_folder_that_may_not_be_written_to_is_told_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path} may not be written to"), only_run(tmp_path):
        pass
