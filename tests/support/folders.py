"""Temporary folders of a process of the tests."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile


def temporary_folder(kind: str) -> str:
    """Return a new folder, which this process removes when it ends."""
    folder = tempfile.mkdtemp(prefix=f"imageryxr-{kind}-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked process runs the exit functions of its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
