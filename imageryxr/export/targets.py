"""What an export can write: PNG stacks and OME-Zarr, each a `Target`.

A target writes into a place of its own beside the final one and moves the result there when all of it is written, so
that what is at the final place is always either the old data or the new, whole.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import string
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imageryxr.errors import ImageryWarning, OptionError, TargetError, TargetExistsError
from imageryxr.expr import Array
from imageryxr.grid import DIMS, Grid, Index3, IndexBox


class Target(Protocol):
    """What an export owes to a format."""

    @property
    def place(self) -> str:
        """Where the result will be."""

    @property
    def granule(self) -> Index3:
        """Voxels (z, y, x) that must be written together: a region is a whole number of them."""

    def refuse(self, overwrite: bool) -> None:
        """Raise if the target cannot be written, or exists and may not be overwritten."""

    def begin(self) -> None:
        """Make the place to write to."""

    def write(self, box: IndexBox, values: Array) -> int:
        """Write a region; return the bytes written. Called from several threads."""

    def finish(self) -> int:
        """Complete the result and move it to its place; return the bytes written on the way."""

    def abandon(self) -> None:
        """Remove what was begun; what was there before stays as it was."""


@contextmanager
def disk_errors(place: str) -> Iterator[None]:
    """Turn a failed write into a `TargetError` that says what to do."""
    try:
        yield
    except TargetError:
        raise
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space or choose another target",
            errno.EDQUOT: "the disk quota is used up: free some space or choose another target",
            errno.EACCES: "you have no right to write there",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0, str(error))
        raise TargetError(f"could not write {place}: {advice}. What was at the target before is untouched") from error


def move_into_place(moves: Sequence[tuple[Path, Path]], aside: Path) -> None:
    """Rename each finished piece to its final path; what was there is kept aside until all are in place.

    If one rename fails, all that were done are taken back, so that the old data are whole again, and it raises.

    Parameters
    ----------
    moves : sequence of (Path, Path)
        Finished piece and final path, on one file system.
    aside : Path
        A folder of the export's own on that file system, which need not exist.
    """
    aside.mkdir(exist_ok=True)
    done: list[tuple[Path, Path]] = []
    try:
        for number, (piece, final) in enumerate(moves):
            if os.path.lexists(final):
                os.rename(final, aside / str(number))
                done.append((final, aside / str(number)))
            os.rename(piece, final)
            done.append((piece, final))
    except BaseException:
        for before, after in reversed(done):
            os.rename(after, before)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------
# pictures, one a slice


@dataclass
class PngStack:
    """A PNG a slice, named by a pattern."""

    pattern: str
    axis: int
    grid: Grid
    channels: int
    dtype: np.dtype[Any]
    compress_level: int = 3
    names: list[Path] = field(default_factory=list)
    _work: Path = field(default_factory=Path)

    @property
    def place(self) -> str:
        """The pattern."""
        return self.pattern

    @property
    def granule(self) -> Index3:
        """One whole slice."""
        size = list(self.grid.shape)
        size[self.axis] = 1
        return (size[0], size[1], size[2])

    def refuse(self, overwrite: bool) -> None:
        """Raise if a file of the stack exists and may not be overwritten, or two slices share a name."""
        if len(set(self.names)) < len(self.names):
            name = self._name_of_axis
            raise OptionError(f"target={self.pattern!r} gives two slices one name; write {{{name}:04d}} for the index")
        there = [n for n in self.names if n.exists()]
        if there and not overwrite:
            raise TargetExistsError(
                f"{there[0]} exists ({len(there)} of the {len(self.names)} files do); give overwrite=True to replace "
                "them when the export is complete, or another target"
            )

    @property
    def _name_of_axis(self) -> str:
        return DIMS[self.axis]

    @property
    def _root(self) -> Path:
        return Path(os.path.commonpath([str(n.parent) for n in self.names]))

    def begin(self) -> None:
        """Make a folder of this export's own among the pictures."""
        with disk_errors(self.place):
            self._root.mkdir(parents=True, exist_ok=True)
            self._work = self._root / f".imageryxr-{uuid.uuid4().hex[:12]}"
            self._work.mkdir()

    def write(self, box: IndexBox, values: Array) -> int:
        """Write the slices of a region."""
        from imageryxr.figure import picture_of

        total = 0
        for i in range(box.start[self.axis], box.stop[self.axis]):
            plane = np.take(values, i - box.start[self.axis], axis=self.axis)
            path = self._work / f"{i}.png"
            with disk_errors(self.place):
                picture_of(plane).save(path, format="PNG", compress_level=self.compress_level)
            total += path.stat().st_size
        return total

    def finish(self) -> int:
        """Move the pictures to their names."""
        with disk_errors(self.place):
            for folder in {name.parent for name in self.names}:
                folder.mkdir(parents=True, exist_ok=True)
            moves = [(self._work / f"{i}.png", name) for i, name in enumerate(self.names)]
            move_into_place(moves, self._work / "aside")
            self._work.rmdir()
        self._warn_of_strays()
        return 0

    def _warn_of_strays(self) -> None:
        # Pictures of a longer stack that was replaced would pass for slices of this one; they may also be somebody's.
        fields = re.split(r"{[^}]*}", os.path.basename(self.pattern))
        like = re.compile(r"-?[\d.]+".join(map(re.escape, fields)))
        mine = set(self.names)
        there = {f for folder in {n.parent for n in self.names} for f in folder.iterdir()}
        strays = sorted(f.name for f in there - mine if like.fullmatch(f.name))
        if strays:
            warnings.warn(
                f"{len(strays)} files beside the {len(self.names)} of this stack have names of its pattern and are not "
                f"part of it: {', '.join(strays[:3])}{', …' if len(strays) > 3 else ''}; remove them if they are of an "
                "earlier export",
                ImageryWarning,
                stacklevel=2,
            )

    def abandon(self) -> None:
        """Remove the folder of this export."""
        shutil.rmtree(self._work, ignore_errors=True)


def png_stack(pattern: str, grid: Grid, channels: int, dtype: np.dtype[Any], **options: Any) -> PngStack:
    """Return the stack that a pattern describes.

    Raises
    ------
    OptionError
        If the pattern names no axis, two, or something else, or the values are no picture.
    """
    parts = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    axes = {name.removesuffix("_nm") for name in parts}
    if len(axes) != 1 or not axes <= set(DIMS):
        raise OptionError(
            f"target={pattern!r} must name one axis to slice along, by index or by nm: e.g. 'stack/z{{z:04d}}.png', "
            f"'stack/{{x_nm:.0f}}nm.png'{'; it names ' + str(sorted(axes)) if axes else ''}"
        )
    if dtype not in (np.uint8, np.uint16, np.bool_):
        raise OptionError(
            f"values of dtype {dtype} are no PNG pictures; make them with to_rgba(image, contrast_limits=…) or "
            "overlay(image, segmentation), or export ids to .ome.zarr"
        )
    dim = axes.pop()
    axis = DIMS.index(dim)
    centers = grid.axes[axis].centers()
    try:
        names = [Path(pattern.format(**{dim: i, f"{dim}_nm": float(c)})) for i, c in enumerate(centers)]
    except (ValueError, KeyError, IndexError) as error:
        raise OptionError(f"target={pattern!r} cannot be filled in ({error}); write e.g. 'z{{z:04d}}.png'") from None
    return PngStack(pattern, axis, grid, channels, dtype, names=[n.absolute() for n in names], **options)
