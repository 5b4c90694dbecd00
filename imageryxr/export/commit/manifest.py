"""The manifest of an export: its call, its regions and its phase. `msgspec` validates every value that is read."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from imageryxr.core.bbox import Index3
from imageryxr.errors import ManifestError, Message, param

FORMAT: Final = 2
"""Part of the hash of a call, so that exports of another format are neither continued nor taken for complete."""
Phase = Literal["writing", "publishing", "finished"]
Kind = Literal["tree", "files", "single", "memory"]

Count = Annotated[int, Meta(ge=0)]
Voxels = Annotated[int, Meta(ge=1)]
# Limits beyond any volume, below which computations do not overflow.
Nanometres = Annotated[float, Meta(ge=-1e18, le=1e18)]
Slices = Annotated[int, Meta(ge=0, le=1 << 26)]
# Part of the name of a folder that is removed; "\Z", because "$" permits a line break.
Run = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]


class SliceNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the files of a stack are named: a pattern, and the axis that it is filled in along."""

    pattern: str
    axis: Annotated[str, Meta(pattern=r"^[zyx]\Z")]
    count: Slices
    resolution: Nanometres
    offset: Nanometres
    run: Run | None = None
    """The run whose entries in the journal have the checksums of these files."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a manifest."""

    token: str
    """Hash of sources, timestamps, arguments and the version of this format: equal for equal calls."""
    what: dict[str, Any]
    """The call in readable form: sources, format, options."""
    step: tuple[Voxels, Voxels, Voxels]
    first: tuple[Voxels, Voxels, Voxels]
    """The regions of the array: their size, and the size of the first one."""
    regions: Count
    """Number of regions, later stages included."""
    phase: Phase = "writing"
    replaces: bool = False
    """Whether what was at the target may be replaced."""
    direct: bool = False
    """Whether files are written to their final place, as in a bucket without an earlier result."""
    kind: Kind = "tree"
    """See `Target.kind`."""
    run: Run = msgspec.field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Identifies this export in the journal, which may have entries of earlier exports."""
    began: str = msgspec.field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    names: SliceNames | None = None
    """How the files are named, for targets that share their folder: see `Target.names`."""
    outdated: tuple[SliceNames, ...] = ()
    """The same for exports that this one replaces. Files that only they have are removed when it is complete."""
    result: Count | None = None
    """Bytes of the file, for targets of a single file."""
    coarse: Voxels = 1 << 20
    """Approximate voxels of a region of a pyramid's coarser levels."""
    replaced: str | None = None
    """Name of another export that replaced some files of this one, which is then incomplete."""
    format: Literal[1, 2] = FORMAT
    """Manifests of format 1 are read, so that their files can be replaced, but such exports are not continued."""

    def to_bytes(self) -> bytes:
        """Return the JSON text."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"

    @classmethod
    def parse(cls, text: bytes, where: str) -> Header:
        """Return the header in a manifest's text, or raise `ManifestError`."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _invalid_manifest(where, str(error)) from None

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
