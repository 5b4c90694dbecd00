"""Which target a path, pattern or URL names."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from imageryxr.errors import OptionError
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import ArrayInfo, Target
from imageryxr.export.targets.gif import gif
from imageryxr.export.targets.images import png_stack, tiff_stack
from imageryxr.export.targets.memory import InMemory
from imageryxr.export.targets.omezarr import ome_zarr
from imageryxr.export.targets.precomputed import precomputed
from imageryxr.export.targets.slices import Stack
from imageryxr.export.targets.tiff import tiff_file
from imageryxr.export.targets.video import video

KINDS = (
    "a path that ends in .ome.zarr or .zarr, precomputed://…, a name pattern such as 'stack/z{z:04d}.png' or .tif (a "
    "picture a slice), a path that ends in .tif, .ome.tif, .mp4, .webm or .gif (one file), or 'memory://'"
)
# Bytes of a name and of a path that file systems take, and those of "….manifest-work-0123456789ab" behind one.
MOST_NAME, MOST_PATH = 255, 4096
BESIDE = 27
PATTERNS: dict[str, Callable[..., Target]] = {".png": png_stack, ".tif": tiff_stack, ".tiff": tiff_stack}
PATHS: dict[str, Callable[..., Target]] = {
    ".zarr": ome_zarr,
    ".tif": tiff_file,
    ".tiff": tiff_file,
    ".mp4": video,
    ".webm": video,
    ".gif": gif,
}


def choose_target(target: str | os.PathLike[str], layer: ArrayInfo, **options: Any) -> Target:
    """Return the target that a path, pattern or URL names.

    Raises
    ------
    OptionError
        If it names none that is known, or an option is not one of that target's.
    """
    if not isinstance(target, str | os.PathLike):
        raise OptionError(f"target={target!r} is no path or URL; give {KINDS}")
    text = os.fspath(target)
    if "\0" in text:
        raise OptionError(f"target={text!r} holds a NUL byte, which no path can; leave it out")
    chosen = _chosen(text, layer, options)
    if chosen.kind != "memory" and not is_remote(chosen.root):
        _check_lengths(chosen, text)
    return chosen


def _check_lengths(chosen: Target, text: str) -> None:
    """Raise `OptionError` if a name, or what is put behind it while the export is under way, is too long for a disk."""
    if isinstance(chosen, Stack):
        keys = [chosen.key(i) for i in (0, chosen.layer.grid.shape[chosen.axis] - 1)]
        last, paths = re.sub(r"[^\w.-]+", "_", chosen.pattern), [f"{chosen.root}/{key}" for key in keys]
    else:
        last, paths = os.path.basename(chosen.root), [chosen.root]
    names = [len(os.fsencode(name)) for path in paths for name in path.split("/")]
    beside = len(os.fsencode(last)) + BESIDE
    if max(*names, beside) > MOST_NAME or max(len(os.fsencode(p)) for p in paths) + MOST_NAME > MOST_PATH:
        short = text if len(text) < 60 else f"{text[:30]}…{text[-20:]}"
        raise OptionError(
            f"target={short!r} has a name that is too long for a disk, with what is put behind it while the export "
            f"is under way: give one of at most {MOST_NAME - BESIDE} bytes, and a path of less than "
            f"{MOST_PATH - MOST_NAME}"
        )


def _chosen(text: str, layer: ArrayInfo, options: dict[str, Any]) -> Target:
    what, maker, place = _maker(text)
    _check_options(what, options, _keywords(maker))
    if maker is InMemory:
        return InMemory(place, place, layer)
    if maker is precomputed:
        return precomputed(text, _root(place), layer, **options)
    is_remote(place)
    if maker in PATTERNS.values():
        return maker(place, layer, **options)
    return maker(place, _root(place), layer, **options)


def options_of(target: str) -> tuple[str, ...]:
    """Return the names of the options that the format of a target has, or raise `OptionError`."""
    return _keywords(_maker(target)[1])


def is_volume(target: str) -> bool:
    """Tell whether the format of a target holds a volume rather than slices, or raise `OptionError`."""
    return _maker(target)[1] in (InMemory, ome_zarr, precomputed)


def _maker(text: str) -> tuple[str, Callable[..., Target], str]:
    """Return the name of a target's kind, what makes it, and the place without what only names the format."""
    if text.startswith("memory:"):
        return "memory://", InMemory, "memory://"
    scheme, _, rest = text.partition("://")
    if scheme in ("precomputed", "neuroglancer-precomputed"):
        return "precomputed://", precomputed, rest
    if scheme in ("zarr", "zarr2", "zarr3"):
        text = rest
    text = text.removeprefix("file://")
    # a pattern may be nothing but a field, and a field may hold a dot: the suffix is that of a filled-in name
    suffix = PurePosixPath(re.sub(r"{[^}]*}", "0", text.rstrip("/"))).suffix.lower()
    pattern = "{" in text
    makers = PATTERNS if pattern or suffix == ".png" else PATHS
    if suffix not in makers:
        raise OptionError(f"target={text!r} is of no format that this version writes; give {KINDS}")
    return f"{suffix} {'pattern' if pattern else 'path'}", makers[suffix], text


def _root(text: str) -> str:
    text = text.removeprefix("file://")
    return text.rstrip("/") if is_remote(text) else os.path.abspath(os.path.expanduser(text))


def _keywords(maker: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(n for n, p in inspect.signature(maker).parameters.items() if p.kind is p.KEYWORD_ONLY)


def _check_options(what: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        said = f"its options are {', '.join(known)}" if known else "it has none"
        if unknown[0] == "axis" and "pattern" in what:
            said = "its name says which way it is sliced, such as 'y{y:04d}.png'"
        raise OptionError(f"{unknown[0]}=… is no option of a {what} target; {said}")
