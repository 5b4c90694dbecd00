"""The command line, as a user's shell runs it."""

from __future__ import annotations

import subprocess
import sys


def run(*args):
    return subprocess.run([sys.executable, "-m", "imageryxr.cli.main", *map(str, args)], capture_output=True, text=True)


# What a figure of the sample shows.
PLACE = ["--center", "4600,2560,130", "--size", "64,48,4", "--resolution", "8,8,40"]
