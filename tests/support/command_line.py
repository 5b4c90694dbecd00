"""Run the command line in this process, or in a new one as a shell does."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from subprocess import CompletedProcess
from unittest import mock

from imageryxr.cli import main


def run(*args: object) -> CompletedProcess[str]:
    """Run a command in this process, which is faster because the package is already imported."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    arguments = mock.patch.object(sys, "argv", ["imageryxr", *map(str, args)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), arguments:
        try:
            main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return CompletedProcess(args, code, out.getvalue(), err.getvalue())


def run_process(*args: object) -> CompletedProcess[str]:
    """Run a command in a new process."""
    command = [sys.executable, "-m", "imageryxr.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


# Options for the box of the sample volume that figures show.
PLACE = ["--center", "4600,2560,130", "--size", "64,48,4", "--resolution", "8,8,40"]
