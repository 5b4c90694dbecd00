"""Errors of disks are explained in words of a user."""

from __future__ import annotations

import errno
import os
import re

import pytest

from imageryxr.core.write_file import disk_problem, write_file
from imageryxr.errors import TargetError


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "quota of the disk .bytes or files. is used up; free some space or remove files"),
        (errno.EFBIG, "maximum file size is reached; raise it"),
        (errno.EROFS, "read-only; make it writable"),
        (errno.EIO, "input/output error; check the disk"),
        (errno.EMFILE, "too many open files; raise"),
        (errno.ENAMETOOLONG, "^File name too long; check"),
    ],
)
def test_the_reason_and_advice_of_an_error_have_no_error_number(number, text):
    found = "; ".join(disk_problem(OSError(number, os.strerror(number))))
    assert re.search(text, found)
    assert "Errno" not in found


def test_a_removed_folder_is_named_and_an_existing_one_is_not_called_removed(tmp_path):
    for folder, is_removed in ((tmp_path / "gone", True), (tmp_path, False)):
        reason, _ = disk_problem(FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder / "x")))
        assert (f"{folder} does not exist on" in reason) == is_removed


def test_a_disk_without_inodes_is_not_called_full(tmp_path, monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
    disk = list(os.statvfs(tmp_path))

    def fill(inodes):
        values = [*disk]
        values[4], values[5:8] = disk[2] // 2, [1000, inodes, inodes]  # f_bavail, f_files, f_ffree, f_favail
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))

    for inodes, is_lacking in ((0, True), (3, True), (900, False)):
        fill(inodes)
        assert ("no free inodes" in disk_problem(error).reason) == is_lacking


def test_a_small_file_on_a_full_disk_is_an_error_in_words(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TargetError, match=r"cannot be written.*\(the disk is full\); choose another folder"):
        write_file(tmp_path / "a.png", b"1")
    assert not list(tmp_path.iterdir())
