"""The engine part of ``imageryxr export``: options of the export and its formats, job files, exit codes."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

from imageryxr.cli.messages import FLAGS, command_text, exit_code
from imageryxr.errors import ImageryError, OptionError
from imageryxr.export import check_tries, export, plan_export
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.targets.registry import is_volume, options_of

NOT_COMPLETE = 3
"""Exit code of an export with failed regions."""
INTERRUPTED = 130
"""Exit code after an interrupt (Ctrl-C)."""
TERMINATED = 143
"""Exit code after SIGTERM, which job schedulers and a system shutdown send."""


class Terminated(KeyboardInterrupt):
    """The command received SIGTERM, which is handled like an interrupt."""


def _handle_sigterm(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # if Python ignores the exception, a second SIGTERM ends the process
    raise Terminated


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the block when this process receives SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _handle_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use the options of a job file as defaults of the command line."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from None
    names = {_flag_name(param.name or "") for param in context.command.params} - {"config"}
    unknown = sorted(key for key in values if key.replace("_", "-") not in names)
    if unknown:
        near = get_close_matches(unknown[0].replace("_", "-"), names, 1)
        meant = f" (is {near[0]} meant?)" if near else ""
        raise OptionError(
            f"--config {path} has {unknown[0]!r}, which is not an option of export{meant}; options are "
            f"{', '.join(sorted(names))}, with - or _ in their names"
        )
    spelled: dict[str, Any] = {}
    for key, value in values.items():
        if _parameter_name(key) in spelled:
            raise OptionError(f"--config {path} gives {key.replace('_', '-')} twice, with - and with _; leave one out")
        _check_kind(context, path, key, value)
        spelled[_parameter_name(key)] = "none" if value is False and key == "scratch" else value
    context.default_map = {**(context.default_map or {}), **{k: _to_command_line(k, v) for k, v in spelled.items()}}
    return path


def _check_kind(context: typer.Context, path: Path, key: str, value: Any) -> None:
    """Raise `OptionError` for a boolean as the value of another kind of option, which would be read as 1 or a word."""
    flags = {param.name for param in context.command.params if getattr(param, "is_flag", False)}
    shown = f"--config {path} gives {key.replace('_', '-')} the value {json.dumps(value, default=str)}"
    if key == "scratch" and value is not False and not isinstance(value, str):
        raise OptionError(f"{shown}; write a folder on a local disk, in quotes, or false for none")
    if isinstance(value, bool) and _parameter_name(key) not in flags and key != "scratch":
        raise OptionError(f"{shown}, but the option is not a boolean; see --help for its values")


def _parameter_name(key: str) -> str:
    name = key.replace("-", "_")
    return {"json": "as_json"}.get(name, name)


def _flag_name(name: str) -> str:
    return {"as_json": "json"}.get(name, name.replace("_", "-"))


def _to_command_line(name: str, value: Any) -> Any:
    """Return a value of a job file in command-line form: lists with commas, corners with a colon, tables as JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return ":".join(_to_command_line(name, part) for part in value)
        return ",".join(map(str, value))
    return value


Config = Annotated[
    Path | None,
    typer.Option(
        help="A TOML job file with any of these options and the target; command-line options override it.",
        callback=_load_config,
        is_eager=True,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="The workers: 'threads' (default), 'processes', or a dask scheduler's address, tcp://host:8786."),
]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", help="Number of threads or processes; of a cluster, regions in progress.")
]
Memory = Annotated[str | None, typer.Option(help="Memory of a worker, such as '4 GB'; default: the available memory.")]
Scratch = Annotated[
    str | None,
    typer.Option(
        help="Folder on a local disk for scratch files of wide slices; default: TMPDIR, or a dask worker's own folder; "
        "'none': no scratch files, chunks are read repeatedly."
    ),
]
Retries = Annotated[int, typer.Option(help="Number of retries of a failed region.")]
OnErrorOption = Annotated[
    str, typer.Option("--on-error", help="'raise': stop at a failed region; 'collect': continue and list all of them.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Continue an unfinished export of the same call, or start again.")
]
ShowProgress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="Show a progress bar; default: in a terminal.")
]
Square = Annotated[
    bool | None, typer.Option("--square/--no-square", help="Resample slices to square pixels, or write one per voxel.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Chunks = Annotated[str | None, typer.Option(help="Chunk size: z,y,x voxels.")]
Shards = Annotated[
    str | None, typer.Option(help="Shard size: z,y,x voxels, multiples of the chunk size; 'none': no shards.")
]
Levels = Annotated[int | None, typer.Option(help="Levels of the pyramid; 1 for none.")]
Compressor = Annotated[str | None, typer.Option(help="OME-Zarr: zstd, lz4, gzip (e.g. zstd:5) or none.")]
OmeVersion = Annotated[str | None, typer.Option("--ome-version", help="OME-Zarr: 0.5 or 0.4.")]
LayerTypeOption = Annotated[str | None, typer.Option("--layer-type", help="'image' or 'segmentation'.")]
Encoding = Annotated[str | None, typer.Option(help="precomputed: raw, jpeg, png or compressed_segmentation.")]
Quality = Annotated[int | None, typer.Option(help="precomputed as JPEG: 1 to 100.")]
Gzip = Annotated[bool | None, typer.Option("--gzip/--no-gzip", help="precomputed: smaller files, for buckets.")]
CompressLevel = Annotated[int | None, typer.Option(help="PNG: 0 to 9.")]
Compression = Annotated[str | None, typer.Option(help="TIFF: zlib or none.")]
BigTiff = Annotated[bool | None, typer.Option("--bigtiff/--no-bigtiff", help="TIFF: allow more than 4 GiB.")]
Fps = Annotated[float | None, typer.Option(help="Video: frames per second.")]
Crf = Annotated[int | None, typer.Option(help="Video: 0 (best) to 51 (smallest).")]


def format_options(axis: str | None, version: str | None, **given: Any) -> dict[str, Any]:
    """Return the given options of a format as keywords of `imageryxr.export`."""
    options = {name: value for name, value in {**given, "axis": axis, "version": version}.items() if value is not None}
    for name in ("chunks", "shards"):
        if name in options:
            if options[name] == "none":  # overrides the job file
                del options[name]
                continue
            try:
                options[name] = tuple(int(part) for part in options[name].split(","))
            except ValueError:
                raise OptionError(f"--{name} {options[name]} is not three whole numbers z,y,x") from None
    return options


def drop_unsupported(
    context: typer.Context, target: str, options: dict[str, Any], square: bool | None
) -> tuple[dict[str, Any], bool | None]:
    """Return the options of a format and `square`, without those of a job file that the given target does not accept.

    A job file gives options for its own target. If the command line gives another target, options that it does not
    accept are dropped with a note.
    """
    if _origin(context, "target") == "DEFAULT_MAP":
        return options, square
    known = options_of(target)
    of_the_file = [
        name for name in options if name not in known and _origin(context, _parameter(name)) == "DEFAULT_MAP"
    ]
    flags = [FLAGS[name] for name in of_the_file]
    if square and is_volume(target) and _origin(context, "square") == "DEFAULT_MAP":
        square, flags = None, [*flags, "--square"]
    if flags:
        verb = "does" if len(flags) == 1 else "do"
        note = f"{', '.join(flags)} of the job file {verb} not apply to the target {target}"
        print(f"note: {note} and {'is' if len(flags) == 1 else 'are'} ignored", file=sys.stderr)
    return {name: value for name, value in options.items() if name not in of_the_file}, square


def _parameter(name: str) -> str:
    return {"version": "ome_version"}.get(name, name)


def _origin(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return "" if source is None else source.name


def run_export(
    array: xr.DataArray,
    target: str,
    *,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
    resume: bool,
    scheduler: str | None,
    workers: int | None,
    memory: str | None,
    scratch: str | None,
    retries: int,
    on_error: Any,
    progress: bool | None,
    square: bool | None,
    options: dict[str, Any],
) -> None:
    """Plan or run an export and print the plan or report; exit with `NOT_COMPLETE` if regions failed."""
    common: dict[str, Any] = {
        "overwrite": overwrite,
        "client": scheduler,
        "workers": workers,
        "memory": memory,
        "scratch": False if scratch == "none" else scratch,
        "square": square,
        **options,
    }
    if target.startswith("memory:"):
        raise OptionError("target memory:// is for Python, where the report holds the array; give a path or a URL")
    check_tries(retries, on_error)
    if dry_run:
        plan = plan_export(array, target, **common)
        assert isinstance(plan, ExportPlan)  # the command line has no cutouts
        _dry_run(plan, as_json)
        return
    if scheduler is not None and "://" in scheduler:
        import distributed  # noqa: F401 - the import sets its log levels, which are changed below

        for name in ("distributed", "distributed.client"):  # our own error already reports a lost scheduler
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with raise_on_sigterm():
            report = export(
                array, target, resume=resume, retries=retries, on_error=on_error, progress=progress, **common
            )
    except (ImageryError, KeyboardInterrupt) as error:
        _print_notes(error)
        raise
    failed = tuple(replace(f, error=command_text(f.error)) for f in report.failed)
    report = replace(report, failed=failed)
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    if not report.complete:
        raise SystemExit(NOT_COMPLETE)


def _dry_run(plan: ExportPlan, as_json: bool) -> None:
    refused = None
    try:
        plan.validate()
    except ImageryError as error:
        refused = error
    if not as_json:
        print(plan)
        plan.warn_of_rereads()
    elif refused is None:
        print(json.dumps(plan.to_dict(), indent=2))
    if refused is not None:
        refused.plan = plan  # type: ignore[attr-defined]
        raise refused


@contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """Also print an error of the block to standard output as one JSON object, if wanted."""
    try:
        yield
    except (ImageryError, KeyboardInterrupt) as error:
        if wanted:
            print_as_json(error)
        if isinstance(error, Terminated):
            raise typer.Exit(TERMINATED) from error  # typer would handle it as an interrupt
        raise


def print_as_json(error: BaseException) -> None:
    """Print an error and its plan as one JSON object, unless it was printed before."""
    if getattr(error, "is_printed", False):
        return
    plan = getattr(error, "plan", None)
    fields = {} if plan is None else plan.to_dict()
    message = command_text(error) or "stopped"
    code = exit_code(error) if isinstance(error, ImageryError) else stopped_code(error)
    print_error(type(error).__name__, message, code, **fields)
    error.is_printed = True  # type: ignore[attr-defined]


def stopped_code(error: BaseException) -> int:
    """Return the exit code after an interrupt or SIGTERM."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def print_error(kind: str, message: str, code: int, **plan: Any) -> None:
    """Print an error as one JSON object."""
    print(json.dumps({**plan, "error": kind, "message": message, "exit_code": code}, indent=2))


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(command_text(note), file=sys.stderr)
