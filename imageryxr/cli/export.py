"""``imageryxr export``: its options, job files and exit codes."""

from __future__ import annotations

import json
import logging
import re
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

import imageryxr as ix
from imageryxr.cli.commands import option, origin
from imageryxr.cli.messages import FLAGS, command_text
from imageryxr.cli.options import DrawingOptions, PlaceOptions, SourceOptions, cut_layers, draw_layers
from imageryxr.core.validate import suggest_names
from imageryxr.errors import ImageryError, OptionError
from imageryxr.export import check_tries, plan_export
from imageryxr.export.plan.plan import ExportPlan
from imageryxr.export.targets.format_options import FormatOptions, RunOptions
from imageryxr.export.targets.registry import is_volume, options_of

NOT_COMPLETE = 3
"""Exit code of an export with failed regions."""
_ONE_FILE = (".tif", ".tiff", ".mp4", ".webm", ".gif")
# Options of `imageryxr.export` that `plan_export` does not have.
_RUNNING = ("resume", "retries", "on_error", "progress")


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use the options of a job file as defaults of the command line."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors write a byte order mark
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from None
    names = {(param.name or "").replace("_", "-") for param in context.command.params} - {"config"}
    unknown = sorted(key for key in values if key.replace("_", "-") not in names)
    if unknown:
        hint = suggest_names(unknown[0].replace("_", "-"), names)
        raise OptionError(
            f"--config {path} has {unknown[0]!r}, which is not an option of export{hint}; options are "
            f"{', '.join(sorted(names))}, with - or _ in their names"
        )
    spelled: dict[str, Any] = {}
    for key, value in values.items():
        if key.replace("-", "_") in spelled:
            raise OptionError(f"--config {path} gives {key.replace('_', '-')} twice, with - and with _; leave one out")
        _check_kind(context, path, key, value)
        spelled[key.replace("-", "_")] = "none" if value is False and key == "scratch" else value
    context.default_map = {**(context.default_map or {}), **{k: _to_command_line(k, v) for k, v in spelled.items()}}
    return path


def _check_kind(context: typer.Context, path: Path, key: str, value: Any) -> None:
    """Raise `OptionError` if an option that is not a flag is a boolean, which would be parsed as 1 or as "True"."""
    flags = {param.name for param in context.command.params if getattr(param, "is_flag", False)}
    shown = f"--config {path} gives {key.replace('_', '-')} the value {json.dumps(value, default=str)}"
    if key == "scratch" and value is not False and not isinstance(value, str):
        raise OptionError(f"{shown}; write a folder on a local disk, in quotes, or false for none")
    if isinstance(value, bool) and key.replace("-", "_") not in flags and key != "scratch":
        raise OptionError(f"{shown}, but the option is not a boolean; see --help for its values")


def _to_command_line(name: str, value: Any) -> Any:
    """Return a value of a job file in command-line form: lists with commas, corners with a colon, tables as JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return ":".join(_to_command_line(name, part) for part in value)
        return ",".join(map(str, value))
    return value


@dataclass(frozen=True)
class JobOptions:
    """The job file, and whether voxels are exported, a plan is made, or JSON is printed."""

    config: Path | None = option(
        "A TOML job file with any of these options and the target; command-line options override it.",
        callback=_load_config,
        is_eager=True,
    )
    raw: bool = option("Export the voxels of the only source, not a picture.", False)
    dry_run: bool = option("Print the plan and write nothing.", False)
    json: bool = option("Print JSON.", False)


def export(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(help="'stack/z{z:04d}.png', precomputed://…, or a path that ends in .ome.zarr, .tif, .mp4 …"),
    ],
    sources: SourceOptions,
    place: PlaceOptions,
    drawing: DrawingOptions,
    format: FormatOptions,
    run: RunOptions,
    job: JobOptions,
) -> None:
    """Write an OME-Zarr, a precomputed layer, a stack of pictures, a TIFF or a video; continue after an interruption.

    Exit codes: 0 done; 1 an error of a source, a server or a disk, or the target exists; 2 an invalid option or job
    file; 3 regions failed (--on-error collect); 130 interrupted; 143 terminated. Default box: the whole extent of the
    sources. A stack of pictures is sliced along the axis in its pattern, and outlines are drawn in these slices.
    """
    options = _format_options(target, drawing.axis, format)
    options, square = _drop_unsupported(context, target, options, run["square"])
    axis = drawing.axis or _slicing_axis(target)
    look = drawing.overlay_options(axis)
    opened, tree = sources.open()
    layers = cut_layers(opened, place.box(place.unit(tree), axis), to=place.to)
    if job.raw and len(layers) != 1:
        raise OptionError("--raw exports one source; give --image or --segmentation, not both")
    array = next(iter(layers.values())) if job.raw else draw_layers(layers, look)
    _run_export(array, target, {**run, "square": square}, options, job)


def _format_options(target: str, axis: str | None, given: FormatOptions) -> dict[str, Any]:
    """Return the given options of a format as keywords of `imageryxr.export`."""
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if axis is not None and "{" not in target and target.lower().endswith(_ONE_FILE):
        options["axis"] = axis
    for name in ("chunks", "shards"):
        if options.get(name) == "none":  # overrides the job file
            del options[name]
        elif name in options:
            try:
                options[name] = tuple(int(part) for part in options[name].split(","))
            except ValueError:
                raise OptionError(f"--{name} {options[name]} is not three whole numbers z,y,x") from None
    return options


def _slicing_axis(pattern: str) -> str:
    """Return the axis that a file name pattern slices along; z if the target is not a pattern."""
    named = re.findall(r"{([xyz])(?:_nm)?[:}]", pattern)
    return str(named[0]) if named else "z"


def _drop_unsupported(
    context: typer.Context, target: str, options: dict[str, Any], square: bool | None
) -> tuple[dict[str, Any], bool | None]:
    """Return the options of a format, and `square`, without options of a job file that the target does not accept.

    A job file gives options for its own target. If the command line gives another target, options of the job file that
    this target does not accept are dropped, with a note.
    """
    if origin(context, "target") == "DEFAULT_MAP":
        return options, square
    known = options_of(target)
    of_the_file = [
        name
        for name in options
        if name not in known and origin(context, FLAGS[name][2:].replace("-", "_")) == "DEFAULT_MAP"
    ]
    flags = [FLAGS[name] for name in of_the_file]
    if square and is_volume(target) and origin(context, "square") == "DEFAULT_MAP":
        square, flags = None, [*flags, "--square"]
    if flags:
        verb = "does" if len(flags) == 1 else "do"
        note = f"{', '.join(flags)} of the job file {verb} not apply to the target {target}"
        print(f"note: {note} and {'is' if len(flags) == 1 else 'are'} ignored", file=sys.stderr)
    return {name: value for name, value in options.items() if name not in of_the_file}, square


def _run_export(array: xr.DataArray, target: str, run: RunOptions, options: dict[str, Any], job: JobOptions) -> None:
    """Plan or run an export and print the plan or report; exit with `NOT_COMPLETE` if regions failed."""
    if target.startswith("memory:"):
        raise OptionError("target memory:// is for Python, where the report has the array; give a path or a URL")
    call: dict[str, Any] = {**run, "scratch": False if run["scratch"] == "none" else run["scratch"], **options}
    check_tries(run["retries"], run["on_error"])
    if job.dry_run:
        plan = plan_export(array, target, **{name: v for name, v in call.items() if name not in _RUNNING})
        assert isinstance(plan, ExportPlan)  # the command line has no cutouts
        _dry_run(plan, job.json)
        return
    if "://" in str(run["client"]):
        import distributed  # noqa: F401 - the import sets its log levels, which are changed below

        for name in ("distributed", "distributed.client"):  # the error of imageryxr already reports a lost scheduler
            logging.getLogger(name).setLevel(logging.CRITICAL)
    report = ix.export(array, target, **call)
    failed = tuple(replace(f, error=command_text(f.error)) for f in report.failed)
    report = replace(report, failed=failed)
    print(json.dumps(report.to_dict(), indent=2) if job.json else report)
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
