"""Show the progress of computations that read remote volumes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imageryxr.core.lazy_import import import_package
from imageryxr.core.units import show_bytes
from imageryxr.sources.fetch.traffic import Traffic, traffic

_INTERVAL = 0.2
# Arrays without dask chunks are read without tasks.
_WITHOUT_TASKS = "{desc} [{elapsed}{postfix}]"
_WITH_TASKS = "{l_bar}{bar}| {n_fmt}/{total_fmt} tasks [{elapsed}<{remaining}{postfix}]"


@contextmanager
def progress() -> Iterator[None]:
    """Show a progress bar for the computations in a ``with`` block, with the bytes received and the requests.

    The bar counts dask tasks, like that of `dask.diagnostics.ProgressBar`. The text beside the bar counts, since the
    block began, the bytes that this process received, its requests to servers, and the chunks that were found in the
    memory and disk caches. The bar is shown in notebooks and in terminals, on standard error. Exports have their own
    bar.

    Computations on a cluster or in other processes are not counted; the cluster's dashboard shows their progress.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> with ix.progress():
    ...     em = em.isel(z=slice(0, 2)).load()
    """
    from dask.callbacks import Callback

    bar, before, done = _new_bar(), traffic(), threading.Event()

    def show() -> None:
        with bar.get_lock():
            bar.set_postfix_str(_text(traffic().since(before)), refresh=False)
            bar.refresh()

    def refresh() -> None:
        while not done.wait(_INTERVAL):
            show()

    def add_tasks(graph: Any, state: Mapping[str, Any]) -> None:
        with bar.get_lock():
            done, began = bar.n, bar.start_t
            # Assigning `bar.total` would not update the widget of a notebook.
            bar.reset((bar.total or 0) + len(state["ready"]) + len(state["waiting"]))
            bar.n, bar.start_t, bar.bar_format = done, began, _WITH_TASKS

    def finish_task(*task: Any) -> None:
        with bar.get_lock():
            bar.n += 1

    timer = threading.Thread(target=refresh, name="imageryxr-progress", daemon=True)
    timer.start()
    try:
        with Callback(start_state=add_tasks, posttask=finish_task):
            yield
    finally:
        done.set()
        timer.join()
        show()
        bar.close()


def _new_bar() -> Any:
    import_package("tqdm")
    from tqdm.auto import tqdm

    return tqdm(total=0, desc="reading", bar_format=_WITHOUT_TASKS, **bar_size())


def bar_size() -> dict[str, Any]:
    """Return the size of a bar for tqdm, which prints nothing in a terminal that reports the size 0."""
    try:
        is_sizeless = os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError, AttributeError):  # not a terminal
        is_sizeless = False
    return {"ncols": 80, "nrows": 24} if is_sizeless else {"dynamic_ncols": True}


def _text(found: Traffic) -> str:
    parts = [f"{show_bytes(found.received)} received", f"{found.requests:,} requests"]
    parts += [f"{found.in_memory:,} chunks from memory"] if found.in_memory else []
    parts += [f"{found.on_disk:,} from disk"] if found.on_disk else []
    return ", ".join(parts)
