"""What a manifest says of an export: which call it is, how it is cut, how far it is; all of it checked when read."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from imageryxr.core.bbox import DIMS, Index3
from imageryxr.errors import ManifestError

FORMAT = 1
Phase = Literal["writing", "publishing", "finished"]
# More than any volume has, and few enough to reckon with.
MOST_NM, MOST_SLICES = 1e18, 1 << 26
KINDS = ("tree", "files", "single")


@dataclass(frozen=True)
class Header:
    """Which export a target is of."""

    token: str
    """Of sources, timestamps, arguments and the version of this format: equal for equal calls."""
    what: dict[str, Any]
    """The call for people to read: sources, format, options."""
    step: tuple[int, int, int]
    first: tuple[int, int, int]
    """How the array is cut into regions."""
    regions: int
    """How many there are, those of later stages included."""
    phase: Phase = "writing"
    replaces: bool = False
    """Whether what was at the target may be replaced."""
    direct: bool = False
    """Whether files go to their final place at once, as they do in a bucket where there was nothing before."""
    kind: str = "tree"
    """How the result gets to its place: see `Target.kind`."""
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Tells this export from others of the same place in the log."""
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    names: dict[str, Any] | None = None
    """What the files are called, for targets among others: see `Target.names`."""
    outdated: list[dict[str, Any]] = field(default_factory=list)
    """The same of exports that this one replaces: those of their files that it does not make go when it is complete."""
    result: int | None = None
    """Size of the one file, for targets of that kind."""
    coarse: int = 1 << 20
    """Voxels of a region of a pyramid's coarser levels, about."""
    replaced: str | None = None
    """Name of another export whose files have taken the place of some of this one's: it is complete no more."""
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Return the JSON text."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, text: bytes, where: str) -> Header:
        """Return what a manifest says, or raise `ManifestError`."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
            if values.get("format", FORMAT) != FORMAT:
                raise ValueError(f"it is of format {values['format']!r}, and this version reads format {FORMAT}")
            for name, (fits, meant) in _VALUES.items():
                if name in values and not fits(values[name]):
                    raise ValueError(f"{name} is {_shown(values[name])} and must be {meant}")
            for name in {"step", "first"} & set(values):
                values[name] = tuple(values[name])
            return cls(**values)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = str(error).removeprefix("Header.__init__() ")
            raise _senseless(where, reason) from None

    def check_cut(self, shape: Index3, granule: Index3, kind: str, where: str) -> None:
        """Raise `ManifestError` if a target of this kind is not written in regions like these."""
        if self.kind != kind:
            raise _senseless(where, f"kind is {self.kind!r} and must be {kind!r}")
        for n, step, first, g in zip(shape, self.step, self.first, granule, strict=True):
            if first < n and (first % g or step % g):
                cut = f"step {list(self.step)} and first {list(self.first)}"
                raise _senseless(where, f"{cut} are not whole numbers of {granule}, what is written together")

    def check_place(self, remote: bool, where: str) -> None:
        """Raise `ManifestError` if a target cannot have been written as it says."""
        if self.direct and (not remote or self.kind == "single"):
            raise _senseless(where, "direct is true, which only many files in a bucket are")


def _senseless(where: str, reason: str) -> ManifestError:
    return ManifestError(
        f"{where} is no manifest that this version reads ({reason}); give overwrite=True to begin anew and replace "
        "what is at the target, or another target"
    )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_whole(v, 1) for v in value)


def _names(value: Any) -> bool:
    """Tell whether a value is what `Target.names` gives."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("pattern", "axis")):
        return False
    numbers = [value.get("resolution"), value.get("offset")]
    real = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < MOST_NM for n in numbers)
    return real and value["axis"] in DIMS and _whole(value.get("count"), 0) and value["count"] <= MOST_SLICES


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


# Of each value, whether it can be, and what it would be.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "token": (_text, "text"),
    "what": (lambda v: isinstance(v, dict), "an object"),
    "step": (_three, "three counts of voxels from 1"),
    "first": (_three, "three counts of voxels from 1"),
    "regions": (lambda v: _whole(v, 0), "a count"),
    "phase": (lambda v: v in get_args(Phase), f"one of {', '.join(get_args(Phase))}"),
    "replaces": (_truth, "true or false"),
    "direct": (_truth, "true or false"),
    "kind": (lambda v: v in KINDS, f"one of {', '.join(KINDS)}"),
    # part of the name of a folder that is removed
    "run": (lambda v: _text(v) and re.fullmatch("[0-9a-f]{12}", v) is not None, "12 hexadecimal digits"),
    "began": (_text, "text"),
    "names": (lambda v: v is None or _names(v), "what the files are called"),
    "outdated": (lambda v: isinstance(v, list) and all(map(_names, v)), "a list of what files are called"),
    "result": (lambda v: v is None or _whole(v, 0), "a count of bytes"),
    "coarse": (lambda v: _whole(v, 1), "a count of voxels from 1"),
    "replaced": (lambda v: v is None or _text(v), "text"),
}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "…"
