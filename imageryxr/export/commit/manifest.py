"""The manifest of an export: its call, its regions and its phase. Every value is validated when it is read."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from imageryxr.core.bbox import DIMS, Index3
from imageryxr.errors import ManifestError, Message, param

FORMAT = 1
Phase = Literal["writing", "publishing", "finished"]
# Limits beyond any volume, below which computations do not overflow.
MOST_NM, MOST_SLICES = 1e18, 1 << 26
KINDS = ("tree", "files", "single")


@dataclass(frozen=True)
class Header:
    """The content of a manifest."""

    token: str
    """Hash of sources, timestamps, arguments and the version of this format: equal for equal calls."""
    what: dict[str, Any]
    """The call in readable form: sources, format, options."""
    step: tuple[int, int, int]
    first: tuple[int, int, int]
    """The regions of the array: their size, and the size of the first one."""
    regions: int
    """Number of regions, later stages included."""
    phase: Phase = "writing"
    replaces: bool = False
    """Whether what was at the target may be replaced."""
    direct: bool = False
    """Whether files are written to their final place, as in a bucket without an earlier result."""
    kind: str = "tree"
    """See `Target.kind`."""
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Identifies this export in the journal, which may have entries of earlier exports."""
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    names: dict[str, Any] | None = None
    """How the files are named, for targets that share their folder: see `Target.names`."""
    outdated: list[dict[str, Any]] = field(default_factory=list)
    """The same for exports that this one replaces. Files that only they have are removed when it is complete."""
    result: int | None = None
    """Bytes of the file, for targets of a single file."""
    coarse: int = 1 << 20
    """Approximate voxels of a region of a pyramid's coarser levels."""
    replaced: str | None = None
    """Name of another export that replaced some files of this one, which is then incomplete."""
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Return the JSON text."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, text: bytes, where: str) -> Header:
        """Return the header in a manifest's text, or raise `ManifestError`."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
            if values.get("format", FORMAT) != FORMAT:
                raise ValueError(f"its format is {values['format']!r}; this version reads format {FORMAT}")
            for name, (is_valid, expected) in _VALUES.items():
                if name in values and not is_valid(values[name]):
                    raise ValueError(f"{name} is {_show_value(values[name])} and must be {expected}")
            for name in {"step", "first"} & set(values):
                values[name] = tuple(values[name])
            return cls(**values)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = str(error).removeprefix("Header.__init__() ")
            raise _invalid_manifest(where, reason) from None

    def check_cut(self, shape: Index3, granule: Index3, kind: str, where: str) -> None:
        """Raise `ManifestError` if the regions do not fit a target of this kind."""
        if self.kind != kind:
            raise _invalid_manifest(where, f"kind is {self.kind!r} and must be {kind!r}")
        for n, step, first, g in zip(shape, self.step, self.first, granule, strict=True):
            if first < n and (first % g or step % g):
                sizes = f"step {list(self.step)} and first {list(self.first)}"
                raise _invalid_manifest(where, f"{sizes} are not multiples of {granule}, the size of a stored object")

    def check_place(self, remote: bool, where: str) -> None:
        """Raise `ManifestError` if a target at this place cannot have been written directly."""
        if self.direct and (not remote or self.kind == "single"):
            raise _invalid_manifest(where, "direct is true, which requires a target of several files in a bucket")


def _invalid_manifest(where: str, reason: str) -> ManifestError:
    return ManifestError(
        Message(
            f"{where} is not a manifest that this version can read ({reason}); give ",
            param("overwrite", True),
            " to start over and replace the target, or give another target",
        )
    )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_three_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_count(v, 1) for v in value)


def _is_names(value: Any) -> bool:
    """Return whether a value has the form that `Target.names` returns."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("pattern", "axis")):
        return False
    numbers = [value.get("resolution"), value.get("offset")]
    real = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < MOST_NM for n in numbers)
    return real and value["axis"] in DIMS and _is_count(value.get("count"), 0) and value["count"] <= MOST_SLICES


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


# For each value, its check, and a description of valid values.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "token": (_is_text, "text"),
    "what": (lambda v: isinstance(v, dict), "an object"),
    "step": (_is_three_counts, "three counts of voxels from 1"),
    "first": (_is_three_counts, "three counts of voxels from 1"),
    "regions": (lambda v: _is_count(v, 0), "a count"),
    "phase": (lambda v: v in get_args(Phase), f"one of {', '.join(get_args(Phase))}"),
    "replaces": (_is_bool, "true or false"),
    "direct": (_is_bool, "true or false"),
    "kind": (lambda v: v in KINDS, f"one of {', '.join(KINDS)}"),
    # part of the name of a folder that is removed
    "run": (lambda v: _is_text(v) and re.fullmatch("[0-9a-f]{12}", v) is not None, "12 hexadecimal digits"),
    "began": (_is_text, "text"),
    "names": (lambda v: v is None or _is_names(v), "a description of file names"),
    "outdated": (lambda v: isinstance(v, list) and all(map(_is_names, v)), "a list of descriptions of file names"),
    "result": (lambda v: v is None or _is_count(v, 0), "a count of bytes"),
    "coarse": (lambda v: _is_count(v, 1), "a count of voxels from 1"),
    "replaced": (lambda v: v is None or _is_text(v), "text"),
}


def _show_value(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "…"
