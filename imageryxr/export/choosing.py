"""Which target a path or pattern names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imageryxr.errors import OptionError
from imageryxr.export.omezarr import OmeZarrTarget
from imageryxr.export.targets import Target, png_stack
from imageryxr.grid import Grid

KINDS = "a name pattern such as 'stack/z{z:04d}.png' (a picture a slice), or a path that ends in .ome.zarr or .zarr"
OPTIONS = {".png": ("compress_level",), ".zarr": ("chunks", "levels", "layer_type")}


def choose_target(
    target: str | os.PathLike[str],
    grid: Grid,
    channels: int,
    dtype: np.dtype[Any],
    attrs: Mapping[str, Any],
    **options: Any,
) -> Target:
    """Return the target that a path or pattern names.

    Raises
    ------
    OptionError
        If it names none that is known, or an option is not one of that target's.
    """
    text = os.fspath(target)
    # a pattern may be nothing but a field, and a field may hold a dot: the suffix is that of a filled-in name
    kind = Path(re.sub(r"{[^}]*}", "0", text.rstrip("/"))).suffix.lower()
    if kind not in OPTIONS:
        raise OptionError(f"target={text!r} is of no format that this version writes; give {KINDS}")
    unknown = sorted(set(options) - set(OPTIONS[kind]))
    if unknown:
        raise OptionError(f"{unknown[0]}=… is no option of a {kind} target; its options are {', '.join(OPTIONS[kind])}")
    if "://" in text and not text.startswith("file://"):
        raise OptionError(f"target={text!r} is remote, and this version writes to local disk; give a local path")
    text = text.removeprefix("file://")
    if kind == ".png":
        return png_stack(text, grid, channels, dtype, **options)
    return OmeZarrTarget.plan(text, grid, channels, dtype, attrs, **options)
