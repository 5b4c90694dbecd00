"""Import optional and heavy packages when they are first used, in any thread."""

from __future__ import annotations

import importlib


def import_package(name: str) -> None:
    """Import a package completely, before a function imports one of its modules.

    If two threads import different modules of a package for the first time, one of them may get an incomplete module,
    or an error about a deadlock: Python lets a thread import ``package.module`` while another thread still runs
    ``package/__init__.py``. A thread that imports the package itself waits until it is complete.
    """
    importlib.import_module(name)
