"""Temporary folders of a test process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile


def temporary_folder(kind: str) -> str:
    """Return a new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix=f"imageryxr-{kind}-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child also runs this function, and must not remove the folder of its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
