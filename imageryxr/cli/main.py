"""The command line: ``imageryxr info | demo | figure | export | measure | cache``."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import imageryxr as ix
from imageryxr.cli import cache
from imageryxr.cli import info as info_command
from imageryxr.cli.commands import add_command, option
from imageryxr.cli.demo import run_demo
from imageryxr.cli.export import export
from imageryxr.cli.figure import figure
from imageryxr.cli.measure import measure
from imageryxr.cli.messages import FAILED, INTERRUPTED, command_text, fail, print_error
from imageryxr.errors import ImageryError, ImageryWarning

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Inspect, draw, measure and export connectomics volumes.",
)
app.add_typer(cache.app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"imageryxr {ix.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Inspect, draw, measure and export connectomics volumes."""


@dataclass(frozen=True)
class InfoOptions:
    """The state that `imageryxr info` reads, and the form in which it is printed."""

    json: bool = option("Print JSON.", False)
    timestamp: str | None = option("Instant of a graphene segmentation, ISO 8601; default: now.")
    read: bool = option("Read the middle chunk of each level (not for graphene).", True)
    allow_local: bool = option("Allow a link to read files and servers of this machine.", False)


def info(
    source: Annotated[
        str, typer.Argument(help="precomputed://…, zarr://…, graphene://…, a URL or path, or a Neuroglancer link.")
    ],
    options: InfoOptions,
) -> None:
    """Print the levels, sizes, resolutions and chunks of a source, or of the layers of a link.

    Levels that are sparse (their middle chunk is missing), damaged or unreadable are marked, and so are levels that are
    listed from coarse to fine. Exit codes: 0 everything can be read; 1 a source, a layer or a level cannot be read.
    """
    how = {"as_json": options.json, "reads": options.read}
    if info_command.is_link(source):
        is_whole = info_command.show_link(source, allow_local=options.allow_local, **how)
    else:
        is_whole = info_command.show_source(source, options.timestamp, **how)
    if not is_whole:
        raise typer.Exit(1)


def demo(
    folder: Annotated[Path, typer.Argument(help="Output folder.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a target that exists.")] = False,
) -> None:
    """Make a sample volume and from it figures, a PNG stack and an OME-Zarr. Needs no network."""
    run_demo(folder, overwrite=overwrite)


for _command in (info, demo, figure, export, measure):
    add_command(app, _command)


def _warn(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"warning: {command_text(message)}", file=sys.stderr)


# Errors of the option parser; typer exposes only this subclass of their base class.
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """Run the command line; errors of imageryxr are printed in one line and set the exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ImageryWarning)
            warnings.showwarning = _warn
            code = app(standalone_mode=False)
            sys.stdout.flush()
    except _USAGE as error:
        in_file = getattr(getattr(error, "ctx", None), "default_map", None) or {}
        if as_json or in_file.get("json") is True:
            print_error(type(error).__name__, error.format_message(), error.exit_code)
        error.show()
        raise SystemExit(error.exit_code) from None
    except ImageryError as error:  # an error in a job file, or of `imageryxr cache`
        fail(error, as_json=as_json)
    except OSError as error:
        if error.errno not in _NO_OUTPUT or error.filename is not None:
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it at exit, which would fail again
        print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        code = FAILED
    except typer.Abort:
        code = INTERRUPTED
    if code == INTERRUPTED:
        fail(KeyboardInterrupt(), as_json=as_json)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
