"""What ``imageryxr export`` has beyond what it draws: options of the engine and of formats, job files, exit codes."""

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

from imageryxr.cli.messages import FLAGS, as_options, exit_code
from imageryxr.errors import ImageryError, OptionError
from imageryxr.export import check_tries, export, plan_export
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.targets.registry import is_volume, options_of

NOT_COMPLETE = 3
"""Exit code of an export of which regions failed."""
INTERRUPTED = 130
"""Exit code of what was stopped by hand."""
TERMINATED = 143
"""Exit code of what a scheduler or a system that shuts down told to end."""


class Terminated(KeyboardInterrupt):
    """The command was told to end by SIGTERM, and does so as if it had been stopped by hand: it tells what is kept."""


def _end(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # where Python drops what is raised here, the next one ends it
    raise Terminated


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Raise `Terminated` where the block is when this process is told to end."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _take_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a job file say what the command line does not."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from None
    names = {_typed_name(param.name or "") for param in context.command.params} - {"config"}
    unknown = sorted(key for key in values if key.replace("_", "-") not in names)
    if unknown:
        near = get_close_matches(unknown[0].replace("_", "-"), names, 1)
        meant = f" (is {near[0]} meant?)" if near else ""
        raise OptionError(
            f"--config {path} has {unknown[0]!r}, which is no option of export{meant}; options are "
            f"{', '.join(sorted(names))}, with - or _ in their names"
        )
    spelled: dict[str, Any] = {}
    for key, value in values.items():
        if _name(key) in spelled:
            raise OptionError(f"--config {path} gives {key.replace('_', '-')} twice, with - and with _; leave one out")
        _check_kind(context, path, key, value)
        spelled[_name(key)] = "none" if value is False and key == "scratch" else value
    context.default_map = {**(context.default_map or {}), **{k: _as_typed(k, v) for k, v in spelled.items()}}
    return path


def _check_kind(context: typer.Context, path: Path, key: str, value: Any) -> None:
    """Raise `OptionError` for a truth value where something else is said, which would pass for 1 or for a word."""
    flags = {param.name for param in context.command.params if getattr(param, "is_flag", False)}
    shown = f"--config {path} gives {key.replace('_', '-')} the value {json.dumps(value, default=str)}"
    if key == "scratch" and value is not False and not isinstance(value, str):
        raise OptionError(f"{shown}; write a folder on a local disk, in quotes, or false for none")
    if isinstance(value, bool) and _name(key) not in flags and key != "scratch":
        raise OptionError(f"{shown}, and it is no yes or no; see --help for what it takes")


def _name(key: str) -> str:
    name = key.replace("-", "_")
    return {"json": "as_json"}.get(name, name)


def _typed_name(name: str) -> str:
    return {"as_json": "json"}.get(name, name.replace("_", "-"))


def _as_typed(name: str, value: Any) -> Any:
    """Return a value of a job file as it would be typed: lists with commas, corners with a colon, tables as JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return ":".join(_as_typed(name, part) for part in value)
        return ",".join(map(str, value))
    return value


Config = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file with any of these options, and the target; what is given here as well counts.",
        callback=_take_config,
        is_eager=True,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Who works: 'threads' (default), 'processes', or a dask scheduler's address, tcp://host:8786."),
]
WorkerCount = Annotated[int | None, typer.Option("--workers", help="Threads, processes, or regions under way.")]
Memory = Annotated[str | None, typer.Option(help="What a worker may take, such as '4 GB'; default: what is free.")]
Scratch = Annotated[
    str | None,
    typer.Option(
        help="Folder on a local disk where what was read waits for wide slices; default: TMPDIR, or a dask worker's "
        "own; 'none': read chunks again and again instead."
    ),
]
Retries = Annotated[int, typer.Option(help="How often a region is tried again that failed.")]
OnErrorOption = Annotated[
    str, typer.Option("--on-error", help="'raise': stop at a region that fails; 'collect': go on and list them.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Continue what an earlier run of the same call has begun, or not.")
]
ShowProgress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="Show a bar; default: in a terminal.")
]
Square = Annotated[
    bool | None, typer.Option("--square/--no-square", help="Resample slices to square pixels, or keep a voxel a pixel.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Chunks = Annotated[str | None, typer.Option(help="Chunk size: z,y,x voxels.")]
Shards = Annotated[
    str | None, typer.Option(help="Shard size: z,y,x voxels, whole numbers of chunks; 'none': no shards.")
]
Levels = Annotated[int | None, typer.Option(help="Levels of the pyramid; 1 for none.")]
Compressor = Annotated[str | None, typer.Option(help="OME-Zarr: zstd, lz4, gzip (e.g. zstd:5) or none.")]
OmeVersion = Annotated[str | None, typer.Option("--ome-version", help="OME-Zarr: 0.5 or 0.4.")]
LayerTypeOption = Annotated[str | None, typer.Option("--layer-type", help="'image' or 'segmentation'.")]
Encoding = Annotated[str | None, typer.Option(help="precomputed: raw, jpeg, png or compressed_segmentation.")]
Quality = Annotated[int | None, typer.Option(help="precomputed as JPEG: 1 to 100.")]
Gzip = Annotated[bool | None, typer.Option("--gzip/--no-gzip", help="precomputed: smaller; for buckets.")]
CompressLevel = Annotated[int | None, typer.Option(help="PNG: 0 to 9.")]
Compression = Annotated[str | None, typer.Option(help="TIFF: zlib or none.")]
BigTiff = Annotated[bool | None, typer.Option("--bigtiff/--no-bigtiff", help="TIFF: one of more than 4 GiB.")]
Fps = Annotated[float | None, typer.Option(help="Video: frames per second.")]
Crf = Annotated[int | None, typer.Option(help="Video: 0 (best) to 51 (smallest).")]


def format_options(axis: str | None, version: str | None, **given: Any) -> dict[str, Any]:
    """Return the options of a format that were given, as `imageryxr.export` takes them."""
    options = {name: value for name, value in {**given, "axis": axis, "version": version}.items() if value is not None}
    for name in ("chunks", "shards"):
        if name in options:
            if options[name] == "none":  # which undoes what a job file says
                del options[name]
                continue
            try:
                options[name] = tuple(int(part) for part in options[name].split(","))
            except ValueError:
                raise OptionError(f"--{name} {options[name]} is not three whole numbers z,y,x") from None
    return options


def fitting(
    context: typer.Context, target: str, options: dict[str, Any], square: bool | None
) -> tuple[dict[str, Any], bool | None]:
    """Return options of a format, and whether pixels are to be square, as far as a target that was typed takes them.

    A job file says them for its own target. What it says that another one has no use for is left out, and told.
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
        said = f"{', '.join(flags)} of the job file {'is' if len(flags) == 1 else 'are'} not of use"
        print(f"note: {said} to the target {target}, and left out", file=sys.stderr)
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
    """Plan or run an export and tell of it; ends the process with `NOT_COMPLETE` where regions failed."""
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
        _dry_run(plan_export(array, target, **common), as_json)
        return
    if scheduler is not None and "://" in scheduler:
        import distributed  # noqa: F401 - it sets the levels of its logs

        for name in ("distributed", "distributed.client"):  # what they say of a lost scheduler is our one message, too
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _told_to_end():
            report = export(
                array, target, resume=resume, retries=retries, on_error=on_error, progress=progress, **common
            )
    except (ImageryError, KeyboardInterrupt) as error:
        _tell_notes(error)
        raise
    failed = tuple(replace(f, error=as_options(f.error)) for f in report.failed)
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
    """Tell of errors on standard output as well, as one JSON object, if that is wanted."""
    try:
        yield
    except (ImageryError, KeyboardInterrupt) as error:
        if wanted:
            tell_as_json(error)
        if isinstance(error, Terminated):
            raise typer.Exit(TERMINATED) from error  # typer takes it for an interrupt
        raise


def tell_as_json(error: BaseException) -> None:
    """Print an error, and the plan that it is of, as one JSON object, once."""
    if getattr(error, "told", False):
        return
    plan = getattr(error, "plan", None)
    told = {} if plan is None else plan.to_dict()
    said = as_options(str(error)) or "stopped"
    code = exit_code(error) if isinstance(error, ImageryError) else stopped_code(error)
    print_error(type(error).__name__, said, code, **told)
    error.told = True  # type: ignore[attr-defined]


def stopped_code(error: BaseException) -> int:
    """Return the exit code of what was stopped."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def print_error(kind: str, message: str, code: int, **plan: Any) -> None:
    """Print what went wrong as one JSON object."""
    print(json.dumps({**plan, "error": kind, "message": message, "exit_code": code}, indent=2))


def _tell_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(as_options(note), file=sys.stderr)
