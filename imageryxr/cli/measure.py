"""``imageryxr measure``: declare its options; print a plan, or measure with a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask

from imageryxr.cli.commands import option
from imageryxr.cli.options import PlaceOptions, SourceOptions, cut_layers, parse_numbers, split_names
from imageryxr.core.validate import check_whole
from imageryxr.errors import OptionError
from imageryxr.export.report import progress_bar, update_bar
from imageryxr.export.store.local import TargetLock
from imageryxr.measure.tables import MeasurementPlan, plan_measurement, run_measurement


@dataclass(frozen=True)
class MeasurePlaceOptions(PlaceOptions):
    """The box and the voxels that are measured."""

    to: str | None = option("Voxels to measure: 'segmentation' (default), 'finest', 'coarsest', 'image', or nm x,y,z.")


@dataclass(frozen=True)
class MeasureOptions:
    """The segments and statistics that are measured, the file of the table, and how the measurement runs."""

    output: str = option("A path that ends in .parquet, .csv or .zarr.", ...)
    ids: str | None = option("Measure only these segments: id,id,…")
    percentiles: str | None = option("Percentiles of the grey values of an image of 8 or 16 bits: 5,50,95.")
    dry_run: bool = option("Print the plan and measure nothing.", False)
    overwrite: bool = option("Replace a target that exists.", False)
    resume: bool = option("Continue an unfinished measurement, or start again.", True)
    scheduler: str | None = option(
        "The workers: 'threads' (default), 'processes', or a dask scheduler's address, tcp://host:8786.",
        python="client",
    )
    workers: int | None = option("Number of threads or processes.")
    progress: bool | None = option("Show a progress bar; default: in a terminal.")
    json: bool = option("Print JSON.", False)


def measure(sources: SourceOptions, place: MeasurePlaceOptions, run: MeasureOptions) -> None:
    """Write a table of the segments: size, position and, with an image, grey values; continue after an interruption.

    A complete table of the same command is not measured again, unless --no-resume is given.

    Exit codes: 0 done; 1 an error of a source, a server or a disk, or the target exists; 2 an invalid option;
    130 interrupted; 143 terminated. Default box: the whole extent of the sources.
    """
    opened, tree = sources.open()
    to = "segmentation" if place.to is None and len(opened) == 2 else place.to
    layers = cut_layers(opened, place.box(place.unit(tree)), to=to)
    if "segmentation" not in layers:
        raise OptionError("measure needs segments: give --segmentation SOURCE")
    levels = None
    if run.percentiles is not None:
        levels = parse_numbers(run.percentiles, "--percentiles", None)
    ids: Any = split_names(run.ids)
    image = layers.get("image")
    plan = plan_measurement(layers["segmentation"], run.output, image, ids=ids, percentiles=levels)
    _run_measure(plan, run)


def _run_measure(plan: MeasurementPlan, run: MeasureOptions) -> None:
    """Print the plan, or measure and print what was written."""
    if run.workers is not None:
        check_whole("workers", run.workers, 1)
    if run.scheduler not in (None, "threads", "processes") and "://" not in run.scheduler:
        raise OptionError(
            f"--scheduler {run.scheduler} is none of threads, processes and an address such as tcp://host:8786"
        )
    if run.dry_run:
        print(json.dumps(plan.to_dict(), indent=2) if run.json else plan)
        return
    if plan.segments is not None and run.resume:
        _report_written(plan, plan.segments, run.json)
        return
    done = len(plan.done) if run.resume else 0
    lock = TargetLock(str(plan.target.with_name(f".{plan.target.name}.lock")))
    with (
        lock.hold(),
        _dask_scheduler(run.scheduler, run.workers),
        progress_bar(str(plan.target), len(plan.regions), done, run.progress) as bar,
    ):
        found = run_measurement(
            plan, report=lambda count: update_bar(bar, count), overwrite=run.overwrite, resume=run.resume
        )
    _report_written(plan, found.sizes["segment"], run.json)


def _report_written(plan: MeasurementPlan, segments: int, as_json: bool) -> None:
    written = {"target": str(plan.target), "segments": segments, "regions": len(plan.regions)}
    print(json.dumps(written, indent=2) if as_json else f"{segments:,} segments in {plan.target}")


@contextmanager
def _dask_scheduler(scheduler: str | None, workers: int | None) -> Iterator[None]:
    """Compute with a scheduler of dask within the block."""
    if scheduler is not None and "://" in scheduler:
        from distributed import Client

        with Client(scheduler):
            yield
        return
    with dask.config.set(scheduler=scheduler or "threads", num_workers=workers):
        yield
