"""Functions that a forked child runs first, because locks, sockets and threads belong to its parent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[[], Any])


def run_after_fork(function: Function) -> Function:
    """Run a function in each forked child of this process, where processes can fork; return the function."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function
