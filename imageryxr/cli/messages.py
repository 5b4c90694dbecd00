"""How the command line speaks: messages made for Python, in the words that are typed; exit codes."""

from __future__ import annotations

import re

from imageryxr.errors import (
    AddressError,
    BoxError,
    ChoiceError,
    ColorError,
    ImageryError,
    LayerError,
    LinkError,
    MipError,
    OptionError,
    ScratchError,
    SegmentError,
    TimestampError,
)

FAILED = 1
"""Exit code where something went wrong at work: a source, a server, a disk, a target that is there."""
TYPED_WRONG = 2
"""Exit code where what was typed, or stands in a job file, cannot work: the same again will fail again."""

_TYPED = (
    AddressError,
    BoxError,
    ChoiceError,
    ColorError,
    LayerError,
    LinkError,
    MipError,
    OptionError,
    SegmentError,
    TimestampError,
)

FLAGS = {
    "agglomerate": "--agglomerate",
    "alpha": "--alpha",
    "allow_local": "--allow-local",
    "assume": "--assume",
    "axis": "--axis",
    "bbox": "--bbox",
    "bigtiff": "--bigtiff",
    "center": "--center",
    "channel": "--channel",
    "chunks": "--chunks",
    "client": "--scheduler",
    "colors": "--colors",
    "compress_level": "--compress-level",
    "compression": "--compression",
    "compressor": "--compressor",
    "contrast_limits": "--contrast",
    "crf": "--crf",
    "dpi": "--dpi",
    "encoding": "--encoding",
    "fps": "--fps",
    "group": "--group",
    "gzip": "--gzip",
    "ids": "--ids",
    "label_pt": "--label-pt",
    "layer_type": "--layer-type",
    "layers": "--layers",
    "levels": "--levels",
    "max_state_size": "--max-state-size",
    "memory": "--memory",
    "merge": "--merge",
    "missing": "--missing",
    "on_error": "--on-error",
    "outline": "--outline",
    "overwrite": "--overwrite",
    "progress": "--progress",
    "quality": "--quality",
    "resolution": "--resolution",
    "rest_alpha": "--rest-alpha",
    "resume": "--resume",
    "retries": "--retries",
    "scale": "--scale",
    "scratch": "--scratch",
    "server_address": "--server-address",
    "shards": "--shards",
    "side": "--outline-side",
    "size": "--size",
    "square": "--square",
    "time": "--time",
    "timestamp": "--timestamp",
    "to": "--to",
    "unit": "--outline-unit",
    "version": "--ome-version",
    "width": "--outline",
    "width_mm": "--width-mm",
    "workers": "--workers",
    "zoom": "--inset-zoom",
}
"""What Python calls an option, and how it is typed."""
# What is typed without a flag, or has none.
_PLACES = {
    "target": "the target",
    "source": "the source",
    "path": "the picture",
    "lo": "from",
    "hi": "to",
    "mip": "mip",
}

# Advice that is of no use to who types: what to type instead.
_PHRASES = {
    r"mip=…": "--image-mip or --seg-mip",
    r"client=… is asynchronous.*": "the scheduler's client is asynchronous",
    r"must be a distributed\.Client, a scheduler's": "must be a scheduler's",
    r"make a picture with to_rgba\(image, contrast_limits=…\) or overlay\(image, segmentation\)": (
        "leave --raw out, which draws them (with --contrast low,high for deep images)"
    ),
    r"move the array to such a grid with regrid\(array, \([^()]*\)\), or ": "",
    r"leave square out, or bring the array onto another grid first with regrid\(array, resolution\)": (
        "leave --square out"
    ),
    r": give array\.astype\('float32'\), or a plain \.tif": "; write a plain .tif",
    r"give contrast_limits=\(low, high\), e\.g\. contrast_limits=\((\d+), (\d+)\), or set them in its attrs": (
        r"give --contrast low,high, e.g. --contrast \1,\2"
    ),
    r", or set array\.attrs\['layer_type'\] if it is the other kind": "",
    r"give token=…, set ": "set ",
    r"open_datastack\(…, (server_address='[^']*')\)": r"\1",
    r", or use BBox\.around\(center, size\)": ", or give --center and --size",
    r"give the lower corner first: BBox\(lo, hi\) with lo < hi on every axis": "give the lower corner first",
    r"imageryxr\.open_(image|segmentation)": r"--\1",
    r"imageryxr\.BBox\(": "--bbox (",
    r"plan_export returns what a worker needs": "--dry-run shows what a worker needs",
    r"scratch=False": "--scratch none",
    r"one file\), or 'memory://'": "one file)",
    r"None follows the format \(": "leave it out to follow the format (",
    r"'warn' also lists them": "--missing warn also lists them",
    r", a Grid, or a resolution \(x, y, z\) in nm, such as \((\d+), (\d+), (\d+)\)": r", or nm: --to \1,\2,\3",
    r"a local disk, None for the usual one, or False": "a local disk, or 'none'",
    r"leave (square|quality|timestamp) out": r"leave --\1 out",
    r"(compress(?:or|ion)=.*?),? or None\b": r"\1 or 'none'",
    r",? or None\b": ", or be left out",
    r"(lo=\([^()]*\)), (?=hi=)": r"\1 ",
}

_NAMES = "|".join(sorted({**FLAGS, **_PLACES}, key=len, reverse=True))
_VALUE = r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|…|[\w.+\-]*[\w+\-]"
_GIVEN = re.compile(rf"(?<![\w/.\-'\"?&])({_NAMES})=({_VALUE})?")
_LISTED = re.compile(r"(its options are )([\w, ]+)")


def as_options(message: str) -> str:
    """Return a message in which what Python calls ``overwrite=True`` is ``--overwrite``."""
    for python, typed in _PHRASES.items():
        message = re.sub(python, typed, message)
    message = _LISTED.sub(lambda m: m[1] + ", ".join(FLAGS.get(n, n) for n in m[2].split(", ")), message)
    return _GIVEN.sub(_flag, message)


def _flag(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    flag = FLAGS.get(name) or _PLACES[name]
    if value in (None, "True"):
        return flag
    if value == "False":
        return f"--no-{flag.removeprefix('--')}"
    if value == "None":
        return f"no {flag}"
    return f"{flag} {_typed(value)}"


def _typed(value: str) -> str:
    """Return a value as it is typed."""
    if value[0] in "([" and ":" not in value:
        return re.sub(r"\s*,\s*", ",", value[1:-1].strip().rstrip(","))
    if value[0] in "'\"" and value[1:-1] and not re.search(r"[\s{}*?$;&|<>()]", value[1:-1]):
        return value[1:-1]
    return value


def exit_code(error: ImageryError) -> int:
    """Return the exit code for an error: whether it is of what was typed, or of the work."""
    if isinstance(error, ScratchError):  # one that is full may have room again
        return FAILED if error.full or error.worker is not None else TYPED_WRONG
    return TYPED_WRONG if isinstance(error, _TYPED) and not isinstance(error, OSError) else FAILED
