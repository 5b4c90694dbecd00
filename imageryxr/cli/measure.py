"""The part of ``imageryxr measure`` below its options: print a plan, or measure with a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import dask
import typer
import xarray as xr

from imageryxr.cli.export import raise_on_sigterm
from imageryxr.cli.options import parse_numbers
from imageryxr.errors import OptionError
from imageryxr.export.report import progress_bar, update_bar
from imageryxr.measure.tables import MeasurementPlan, plan_measurement, run_measurement

Output = Annotated[str, typer.Option("--output", help="A path that ends in .parquet, .csv or .zarr.")]
Ids = Annotated[str | None, typer.Option(help="Measure only these segments: id,id,…")]
To = Annotated[
    str | None,
    typer.Option(help="Voxels to measure: 'segmentation' (default), 'finest', 'coarsest', 'image', or nm x,y,z."),
]
Percentiles = Annotated[
    str | None, typer.Option(help="Percentiles of the grey values of an image of 8 or 16 bits: 5,50,95.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="The workers: 'threads' (default), 'processes', or a dask scheduler's address, tcp://host:8786."),
]
WorkerCount = Annotated[int | None, typer.Option("--workers", help="Number of threads or processes.")]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Continue an unfinished measurement, or start again.")
]


def make_plan(
    layers: dict[str, xr.DataArray], output: str, ids: str | None, percentiles: str | None
) -> MeasurementPlan:
    """Return the plan of a measurement of aligned layers."""
    if "segmentation" not in layers:
        raise OptionError("measure needs segments: give --segmentation SOURCE")
    levels = None if percentiles is None else parse_numbers(percentiles, "--percentiles", tuple(range(1, 100)))
    wanted: Any = None if ids is None else [i.strip() for i in ids.split(",")]
    return plan_measurement(layers["segmentation"], output, layers.get("image"), ids=wanted, percentiles=levels)


def run_measure(
    plan: MeasurementPlan,
    *,
    dry_run: bool,
    as_json: bool,
    progress: bool | None,
    scheduler: str | None,
    workers: int | None,
    **options: Any,
) -> None:
    """Print the plan, or measure and print what was written."""
    if dry_run:
        print(json.dumps(plan.to_dict(), indent=2) if as_json else plan)
        return
    done = len(plan.done) if options["resume"] else 0
    with (
        raise_on_sigterm(),
        _dask_scheduler(scheduler, workers),
        progress_bar(str(plan.target), len(plan.regions), done, progress) as bar,
    ):
        found = run_measurement(plan, report=lambda count: update_bar(bar, count), **options)
    segments = found.sizes["segment"]
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
    if scheduler not in (None, "threads", "processes"):
        raise OptionError(
            f"--scheduler {scheduler} is none of threads, processes and an address such as tcp://host:8786"
        )
    with dask.config.set(scheduler=scheduler or "threads", num_workers=workers):
        yield
