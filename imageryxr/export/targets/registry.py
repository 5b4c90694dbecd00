"""Choose the format of a path, pattern or URL by its name, and make the target."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.core.validate import suggest_names
from imageryxr.errors import Message, OptionError, Wording, join_messages, param
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import ArrayInfo, Target
from imageryxr.export.targets.format_options import RunOptions
from imageryxr.export.targets.omezarr import ome_zarr
from imageryxr.export.targets.precomputed import precomputed
from imageryxr.export.targets.stack import Stack, png_stack, tiff_stack
from imageryxr.export.targets.tiff import tiff_file
from imageryxr.export.targets.video import gif, video
from imageryxr.graph.expr import Array

KINDS = Message(
    "a path that ends in .ome.zarr or .zarr, precomputed://…, a name pattern such ",
    "as 'stack/z{z:04d}.png' or .tif (one picture per slice), a path that ends in ",
    ".tif, .ome.tif, .mp4, .webm or .gif (one file)",
    Wording(", or 'memory://'", ""),
)
# Limits of file systems for the bytes of a name and of a path, and the bytes of ".manifest-work-0123456789ab".
MAX_NAME, MAX_PATH = 255, 4096
WORK_SUFFIX = 27
# The keywords of `export` for all formats, of which one may be misspelt.
EXPORT_KEYWORDS = tuple(RunOptions.__annotations__)
PATTERNS: dict[str, Callable[..., Target]] = {".png": png_stack, ".tif": tiff_stack, ".tiff": tiff_stack}
PATHS: dict[str, Callable[..., Target]] = {
    ".zarr": ome_zarr,
    ".tif": tiff_file,
    ".tiff": tiff_file,
    ".mp4": video,
    ".webm": video,
    ".gif": gif,
}


@dataclass(frozen=True)
class InMemory(Target):
    """A NumPy array in this process, to which the workers return their regions."""

    kind = "memory"
    encoding = 1.0

    def describe(self) -> dict[str, Any]:
        """Return the format."""
        return {"format": "memory"}

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return an empty list: no file is written."""
        return []

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Return an empty iterator: no file is written."""
        return iter(())


def in_memory(place: str, layer: ArrayInfo) -> InMemory:
    """Return the target in memory."""
    return InMemory(place, place, layer)


def choose_target(target: str | os.PathLike[str], layer: ArrayInfo, **options: Any) -> Target:
    """Return the target that a path, pattern or URL names, or raise `OptionError`."""
    if not isinstance(target, str | os.PathLike):
        raise OptionError(param("target", target), " is not a path or URL; give ", KINDS)
    text = os.fspath(target)
    if "\0" in text:
        raise OptionError(param("target", text), " contains a NUL byte, which paths cannot; remove it")
    what, factory, place = _find_factory(text)
    _check_options(what, options, _keyword_names(factory))
    if factory is precomputed and re.fullmatch(r"([a-z0-9+-]+:/*)*", place):
        raise OptionError(param("target", text), " has no location; give a path or a URL, such as precomputed://layer")
    chosen = factory(place, layer, **options)
    if chosen.kind != "memory" and not is_remote(chosen.root):
        _check_lengths(chosen, text)
        if is_volume(text):
            _check_working_folder(chosen.root, text)
    return chosen


def _check_working_folder(root: str, text: str) -> None:
    """Raise `OptionError` if the folder of a volume, which is replaced when the volume is complete, is in use."""
    here = os.getcwd()
    if f"{here}{os.sep}".startswith(root.rstrip(os.sep) + os.sep):
        raise OptionError(
            param("target", text),
            f" is the working folder {here} or contains it, and the folder of the target is replaced; give a new ",
            "folder, or change to another working folder",
        )


def _check_lengths(chosen: Target, text: str) -> None:
    """Raise `OptionError` if a name, or the name of the work folder, is too long for a file system."""
    if isinstance(chosen, Stack):
        keys = [chosen.key(i) for i in (0, chosen.layer.grid.shape[chosen.axis] - 1)]
        # the name of the manifest contains a hash
        last, paths = re.sub(r"[^\w.-]+", "_", f"{chosen.pattern}-01234567"), [f"{chosen.root}/{key}" for key in keys]
    else:
        last, paths = os.path.basename(chosen.root), [chosen.root]
    names = [len(os.fsencode(name)) for path in paths for name in path.split("/")]
    work = len(os.fsencode(last)) + WORK_SUFFIX
    if max(*names, work) > MAX_NAME or max(len(os.fsencode(p)) for p in paths) + MAX_NAME > MAX_PATH:
        short = text if len(text) < 60 else f"{text[:30]}…{text[-20:]}"
        raise OptionError(
            param("target", short),
            f" has a name that is too long for file systems; give a name of at most {MAX_NAME - WORK_SUFFIX} ",
            "bytes, which leaves room for the suffix of the work folder, and a path of ",
            f"less than {MAX_PATH - MAX_NAME}",
        )


def options_of(target: str) -> tuple[str, ...]:
    """Return the names of the options of a target's format, or raise `OptionError`."""
    return _keyword_names(_find_factory(target)[1])


def is_volume(target: str) -> bool:
    """Return whether a target's format stores a volume rather than slices, or raise `OptionError`."""
    return _find_factory(target)[1] in (in_memory, ome_zarr, precomputed)


def _find_factory(text: str) -> tuple[str, Callable[..., Target], str]:
    """Return the name of a target's format, its factory, and the place that the factory takes."""
    if text.startswith("memory:"):
        return "memory:// target", in_memory, "memory://"
    scheme, _, rest = text.partition("://")
    if scheme in ("precomputed", "neuroglancer-precomputed"):
        return "precomputed:// target", precomputed, text
    if scheme in ("zarr", "zarr2", "zarr3"):
        text = rest
    text = text.removeprefix("file://")
    # Fields are filled in first, because a field may contain a dot, or be the whole name.
    suffix = PurePosixPath(re.sub(r"{[^}]*}", "0", text.rstrip("/"))).suffix.lower()
    pattern = "{" in text
    makers = PATTERNS if pattern or suffix == ".png" else PATHS
    if suffix not in makers:
        raise OptionError(param("target", text), " has no format that this version writes; give ", KINDS)
    return f"target of {suffix} slices" if pattern else f"{suffix} target", makers[suffix], text


def _keyword_names(factory: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(n for n, p in inspect.signature(factory).parameters.items() if p.kind is p.KEYWORD_ONLY)


def _check_options(what: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = suggest_names(unknown[0], [*known, *EXPORT_KEYWORDS])
        names = join_messages(", ", (Message(param(name)) for name in known))
        advice = Message("its options are ", names) if known else "it has none"
        if unknown[0] == "axis" and "slices" in what:
            advice = "the field in its name determines the axis, such as 'y{y:04d}.png'"
        raise OptionError(param(unknown[0], ...), f" is not an option of a {what}{hint}; ", advice)
