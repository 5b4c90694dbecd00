"""Python processes that tests start, stop and kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.forkserver import Forked

ROOT = Path(__file__).parents[2]


def python(*args, stdout=None, stderr=None, session=False):
    """Start a process: an interpreter for a module (-m); for a program (-c) or script on Linux, a fork of a warm process."""
    env, command = {**os.environ, "PYTHONPATH": str(ROOT)}, [str(arg) for arg in args]
    if sys.platform == "linux" and command[0] != "-m":
        return Forked(command, env, stdout, stderr, session)
    return subprocess.Popen(
        [sys.executable, *command],
        env=env,
        cwd=ROOT,
        text=True,
        stdout=stdout,
        stderr=stderr,
        start_new_session=session,
    )


def _wait_for(folder, pattern, lines):
    for _ in range(6000):
        found = [p for p in folder.rglob(pattern) if len(p.read_bytes().splitlines()) > lines]
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"no {pattern} in {folder}")
