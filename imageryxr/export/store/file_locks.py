"""File locks, and the processes that hold them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from imageryxr.errors import TargetError

# Attempts and pause in seconds: `lock_holder` in another process locks the file for a moment.
TRIES = 5
PAUSE = 0.02


def lock(handle: int, path: str) -> None:
    """Lock an open file, or raise `TargetError` if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows: there two exports of one target do not exclude each other
        return
    for left in reversed(range(TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise TargetError(
                    f"another process is exporting to this target ({_process(handle)}, which holds {path}); wait for "
                    "it to end, or stop it: the same call continues where it stopped"
                ) from None
        time.sleep(PAUSE)


def lock_holder(path: str) -> str:
    """Return which process has locked a file, in words; empty if none has."""
    try:
        import fcntl
    except ImportError:
        return ""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _process(handle)
    else:
        return ""
    finally:
        os.close(handle)


def _process(handle: int) -> str:
    """Return the process that has locked a file, with its id where the system lists it."""
    inode = os.fstat(handle).st_ino
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    # number: FLOCK ADVISORY WRITE pid major:minor:inode start end
    found = {w[4] for w in map(str.split, lines) if w[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and _inode(w[5]) == inode}
    pid = found.pop() if len(found) == 1 else ""
    if not pid.isdigit() or pid == "0":
        return "a process"
    return "this process" if int(pid) == os.getpid() else f"process {pid}"


def _inode(place: str) -> int:
    return int(place.rpartition(":")[2])
