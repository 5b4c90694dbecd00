"""Print the help of a command as the API reference shows it."""

from __future__ import annotations

import os
import subprocess
import sys


def print_help(*command: str) -> None:
    """Print the help of ``imageryxr COMMAND`` at a fixed width and without colours."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    arguments = [sys.executable, "-m", "imageryxr", *command, "--help"]
    text = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout
    print(text.replace("python -m imageryxr", "imageryxr").strip())
