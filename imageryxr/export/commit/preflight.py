"""Checks before an export starts: free space on the disk, and permission to write."""

from __future__ import annotations

import math
import os
import shutil
import uuid
from contextlib import suppress

from imageryxr.errors import Message, TargetError, warn
from imageryxr.export.commit.session import Workspace
from imageryxr.export.report import show_bytes
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.targets.base import COARSER, Target

# Compression ratio above which a warning doubts that the export fits on the disk.
MAX_COMPRESSION = 20


def check_writable(workspace: Workspace, takes: int, target: Target) -> None:
    """Raise `TargetError` if a target cannot be written; leave nothing behind.

    Parameters
    ----------
    workspace : Workspace
    takes : int
        Bytes of all voxels, before compression.
    target : Target
    """
    probe = f"{workspace.name}-probe-{uuid.uuid4().hex[:8]}"
    if workspace.remote:
        Bucket(workspace.folder).check_conditional_writes(probe)
        return
    folder = workspace.folder
    while not os.path.isdir(folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):  # another process may just have created the folder
            raise TargetError(f"could not write {workspace.target.place}: {folder} is a file, not a folder")
        folder = os.path.dirname(folder)
    try:
        path = os.path.join(folder, probe)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        with suppress(FileNotFoundError):  # another export that starts here removes probes
            os.unlink(path)
    except OSError as error:
        # /proc reports "no such file" for an existing folder, so the message names the folder
        raise TargetError(
            f"could not write {workspace.target.place}: no file can be created in the folder {folder} "
            f"({error.strerror}); choose another target, or get permission to write there"
        ) from error
    _check_free_space(shutil.disk_usage(folder).free, takes, target, folder)


def _check_free_space(free: int, takes: int, target: Target, folder: str) -> None:
    # a single file is assembled from files of its slices, so both exist at once
    least = takes * (2 if target.kind == "single" else 1)
    if target.plain and least > free:
        raise TargetError(
            f"could not write {target.place}: it needs {show_bytes(least)}; {show_bytes(free)} are free in {folder}"
        )
    if takes > MAX_COMPRESSION * free:
        warn(
            Message(
                f"{target.place} needs {show_bytes(takes)} before compression; {show_bytes(free)} are free in ",
                f"{folder}, which suffices only at a compression ratio of {math.ceil(takes / max(1, free)):,}; ",
                *("choose another disk, a smaller box, or ", COARSER),
            )
        )
