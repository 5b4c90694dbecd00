"""Whether there is a place on the disk for what an export writes, and the right to write it."""

from __future__ import annotations

import math
import os
import shutil
import uuid
from contextlib import suppress

from imageryxr.errors import TargetError, warn
from imageryxr.export.commit.session import Workspace
from imageryxr.export.report import show_bytes
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.targets.base import Target

# How much smaller than in memory a volume may become on the disk before that is doubted.
MOST_SQUEEZED = 20


def check_writable(workspace: Workspace, takes: int, target: Target) -> None:
    """Raise `TargetError` if a target cannot be written, and leave nothing.

    Parameters
    ----------
    workspace : Workspace
        Says where it would be.
    takes : int
        Bytes of all voxels, before compression.
    target : Target
        Says whether they are compressed.
    """
    probe = f"{workspace.name}-probe-{uuid.uuid4().hex[:8]}"
    if workspace.remote:
        Bucket(workspace.folder).check_conditional_writes(probe)
        return
    folder = workspace.folder
    while not os.path.isdir(folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):  # it may have been made just now
            raise TargetError(f"could not write {workspace.target.place}: {folder} is a file, not a folder")
        folder = os.path.dirname(folder)
    try:
        path = os.path.join(folder, probe)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        with suppress(FileNotFoundError):  # another process that begins here tidied up
            os.unlink(path)
    except OSError as error:
        # /proc says "no such file" of a folder that is there: what is known is that nothing can be made in it
        raise TargetError(
            f"could not write {workspace.target.place}: no file can be made in the folder {folder} ({error.strerror}); "
            "choose another target, or get the right to write there"
        ) from error
    _check_room(shutil.disk_usage(folder).free, takes, target, folder)


def _check_room(free: int, takes: int, target: Target, folder: str) -> None:
    # one file is put together from what its slices were
    least = takes * (2 if target.kind == "single" else 1)
    if target.plain and least > free:
        raise TargetError(
            f"could not write {target.place}: it takes {show_bytes(least)}, and {show_bytes(free)} are free in {folder}"
        )
    if takes > MOST_SQUEEZED * free:
        warn(
            f"{target.place} takes {show_bytes(takes)} before compression, and {show_bytes(free)} are free in "
            f"{folder}: it fits only if it shrinks to a {math.ceil(takes / max(1, free)):,}th; choose another disk, "
            "a smaller box, or a coarser level (mip=…)"
        )
