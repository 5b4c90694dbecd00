"""A command that runs in this process."""

from __future__ import annotations

import pytest

from imageryxr.cli import main


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs a command here and returns its exit code, standard output and standard error."""

    def run(*args):
        monkeypatch.setattr("sys.argv", ["imageryxr", *map(str, args)])
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
