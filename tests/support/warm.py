"""Imports of a process that forks the processes of tests, so that the forks start fast."""

from __future__ import annotations

import gc
import threading


def load() -> None:
    """Import the modules that exports use and load the compiled kernels, without starting a thread."""
    import av  # noqa: F401
    import cloudvolume.chunks  # noqa: F401
    import numcodecs  # noqa: F401
    import obstore  # noqa: F401
    import PIL.PngImagePlugin  # noqa: F401
    import tifffile  # noqa: F401
    import tqdm.auto  # noqa: F401
    import zarr  # noqa: F401

    import imageryxr.render.figure  # noqa: F401
    from imageryxr.core.bbox import IndexBox
    from imageryxr.graph.labelled import box_reader
    from tests.support.export_jobs import picture

    box_reader(picture())(IndexBox.of_shape((2, 8, 8)))
    assert threading.active_count() == 1
    gc.freeze()  # garbage collection in a forked process would otherwise copy all memory pages
