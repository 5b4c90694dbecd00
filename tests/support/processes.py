"""Python processes that tests start, stop and kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*args, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, args)], env=env, cwd=ROOT, text=True, **kwargs)


def _wait_for(folder, pattern, lines):
    for _ in range(6000):
        found = [p for p in folder.rglob(pattern) if len(p.read_bytes().splitlines()) > lines]
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"no {pattern} in {folder}")
