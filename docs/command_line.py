"""Print the help of a command as the API reference shows it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from unittest.mock import patch


def print_help(*command: str) -> None:
    """Print the help of ``imageryxr COMMAND`` at a fixed width and without colours."""
    (script,) = entry_points(group="console_scripts", name="imageryxr")
    main = script.load()
    environment = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    with patch.dict(os.environ, environment), patch.object(sys, "argv", ["imageryxr", *command, "--help"]):
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
