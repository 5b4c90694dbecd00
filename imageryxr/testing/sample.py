"""Generate a connectomics volume for examples and tests without a network.

The tissue is an artificial block of neuropil: `imageryxr.testing.tissue` grows it, `imageryxr.testing.micrograph` draws
it, and `sample` writes it.

The bytes are the same on every machine: random numbers are PCG64 with a fixed seed, and the arithmetic is elementwise
``+ - * / sqrt`` (rounded exactly everywhere), without BLAS, fused or transcendental functions.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import OptionError, TargetError, TargetExistsError, format_value

_VERSION = 1
_MARKER = "imageryxr-sample.json"
_SHAPE = (64, 1024, 1024)
# Offset of the finest image level, (x, y, z) in its voxels.
_OFFSET = (4096, 2048, 100)
_RESOLUTION = (8, 8, 40)
_IMAGE_CHUNK = (128, 128, 16)
_LABEL_CHUNK = (64, 64, 16)


@dataclass(frozen=True)
class Sample:
    """A generated sample volume on disk.

    Parameters
    ----------
    path : Path
        The absolute path of its folder.
    shape : tuple of int
        Shape (z, y, x) of the finest level of the image, in voxels.
    """

    path: Path
    shape: tuple[int, int, int] = _SHAPE

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _check_path(self.path))
        object.__setattr__(self, "shape", _check_shape(self.shape))

    @property
    def image(self) -> str:
        """The address of the image layer."""
        return f"precomputed://file://{self.path.as_posix()}/image"

    @property
    def segmentation(self) -> str:
        """The address of the segmentation layer."""
        return f"precomputed://file://{self.path.as_posix()}/segmentation"

    def __repr__(self) -> str:
        z, y, x = self.shape
        return (
            f"Sample({x} x {y} x {z} voxels of 8 x 8 x 40 nm, generated)\n"
            f"  image:        {self.image}\n"
            f"  segmentation: {self.segmentation}"
        )


def sample(path: str | os.PathLike[str], *, shape: tuple[int, int, int] = _SHAPE, progress: bool = False) -> Sample:
    """Write a generated block of brain tissue, and return its location.

    The same call writes the same voxels on every machine, without a network. If `path` already contains this sample,
    nothing is written. The files are written to a temporary folder next to `path`, which is then renamed.

    Parameters
    ----------
    path : str or path-like
        The folder to write. It must be new, empty, or contain a sample.
    shape : tuple of int, default (64, 1024, 1024)
        Shape (z, y, x) of the finest level of the image, in voxels: multiples of 4 from 64 in y and x, at least 4 in z.
        A different shape gives a different tissue, not a crop.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Sample
        Its ``image`` and ``segmentation`` are addresses for `open_image`, `open_segmentation` or any other reader of
        Neuroglancer precomputed volumes.

    Raises
    ------
    OptionError
        If `shape` is not three integers within these bounds.
    TargetExistsError
        If `path` is a file, or contains other files or a sample of another shape.
    TargetError
        If `path` cannot be written.

    Notes
    -----
    ``image`` is uint8, raw, with voxels (x, y, z) of 8 x 8 x 40, 16 x 16 x 40 and 32 x 32 x 40 nm; each level is the
    mean of the previous one. Its finest level begins at voxel (4096, 2048, 100). ``segmentation`` is uint64,
    compressed_segmentation, at 16 x 16 x 40 and 32 x 32 x 40 nm (downsampled by mode). It is in the same space in nm,
    but slightly smaller than the image on all sides (if the block is at least 128 wide and 32 deep). Ids resemble root
    ids of CAVE, which float64 cannot represent; some pairs differ by one. Background is 0: clefts between cells, and
    the lumen of a blood vessel. The image takes 88 MB and the segmentation a few MB. Chunks are stored without gzip, so
    that any reader and any static file server can handle them.

    Examples
    --------
    >>> import tempfile, imageryxr as ix
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     block = ix.sample(f"{folder}/block", shape=(4, 64, 64))
    ...     sorted(entry.name for entry in block.path.iterdir())
    ['image', 'imageryxr-sample.json', 'segmentation']
    >>> block.image
    'precomputed://file:///.../block/image'
    """
    # `Path.resolve` raises RuntimeError for links that form a loop, at which the write below fails with advice
    target = Sample(Path(os.path.realpath(_check_path(path).expanduser())), _check_shape(shape))
    if _is_complete(target):
        return target
    try:
        target.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.path.name}.", dir=target.path.parent) as scratch:
            written = Sample(Path(scratch) / "sample", target.shape)
            _write(written, progress=progress)
            _move(written, target, Path(scratch) / "stale")
    except TargetError:
        raise
    except OSError as error:
        raise TargetError(f"the sample cannot be written to {target.path}: {error}") from error
    return target


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _check_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise OptionError(f"path={format_value(path)} must be the path of a folder")
    return Path(path)


def _check_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    try:
        z, y, x = (index(n) for n in shape)
    except (TypeError, ValueError, np.ma.MaskError):
        z, y, x = 0, 0, 0
    if z < 4 or min(y, x) < 64 or y % 4 or x % 4:
        raise OptionError(
            f"shape={format_value(shape)}: give (z, y, x) in voxels, z at least 4, y and x at least 64 and "
            "multiples of 4, such as shape=(16, 128, 128)"
        )
    return z, y, x


def _marker(shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"imageryxr_sample": _VERSION, "shape": list(shape)}


def _is_complete(target: Sample) -> bool:
    """Return whether the sample exists; raise `TargetExistsError` if its folder contains something else."""
    path, parts = target.path, {"image", "segmentation", _MARKER}
    if not os.path.exists(path):
        return False
    if not path.is_dir():
        raise TargetExistsError(f"{path} is a file; give the sample a folder of its own")
    found = {entry.name for entry in path.iterdir()}
    if not found:
        return False
    try:
        marker = json.loads((path / _MARKER).read_text())
        version, shape = marker["imageryxr_sample"], tuple(marker["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        raise TargetExistsError(
            f"{path} contains other files ({', '.join(sorted(found)[:3])}{', …' * (len(found) > 3)}); "
            "give the sample a folder of its own"
        ) from None
    whole = all((path / layer / "info").is_file() for layer in ("image", "segmentation"))
    if whole and shape == target.shape and version == _VERSION:
        return True
    if whole and shape != target.shape:
        raise TargetExistsError(
            f"{path} contains a sample of shape {shape}, not {target.shape}; delete it or choose another folder"
        )
    if found - parts:
        raise TargetExistsError(
            f"{path} contains an outdated or incomplete sample, and other files "
            f"({', '.join(sorted(found - parts)[:3])}); move those files or choose another folder"
        )
    return False


def _move(written: Sample, target: Sample, stale: Path) -> None:
    """Rename the complete folder to its final path, after moving an outdated sample out of the way."""
    if target.path.exists():
        if _is_complete(target):  # another process finished first
            return
        os.rename(target.path, stale)
    os.rename(written.path, target.path)


# ---------------------------------------------------------------------------------------------------------------------
# The layers


def _write(target: Sample, *, progress: bool) -> None:
    from tqdm import tqdm

    from imageryxr.testing.micrograph import TILE, Tissue

    shape = target.shape
    tissue = Tissue(shape)
    image = [_open_level(target.image, "image", mip, shape) for mip in range(3)]
    label = [_open_level(target.segmentation, "segmentation", mip, shape) for mip in range(2)]
    (first_z, last_z), (first_y, last_y), (first_x, last_x) = _label_window(shape)
    kept = []
    deep = range(0, shape[0], TILE[0])
    for z in tqdm(deep, desc="sample", unit="slab", disable=not progress):
        grey, cells = tissue.slab(z)
        kept.append(cells)
        for mip, volume in enumerate(image):
            grey = grey if mip == 0 else _mean2(grey)
            _write_slices(volume, grey, z)
    inner = np.concatenate(kept)[first_z:last_z, first_y:last_y, first_x:last_x]
    for z in range(0, inner.shape[0], _LABEL_CHUNK[2]):
        ids = tissue.ids[inner[z : z + _LABEL_CHUNK[2]]]
        _write_slices(label[0], ids, z)
        _write_slices(label[1], _mode2(ids), z)
    (target.path / _MARKER).write_text(json.dumps(_marker(shape)) + "\n")


def _label_window(shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """Return the ranges (z, y, x) of the segmentation on the grid of the whole block at 16 x 16 x 40 nm."""
    z, y, x = shape
    return tuple((a, n - a) for n, a in ((z, z // 32), (y // 2, y // 128 * 2), (x // 2, x // 128 * 2)))


def _scales(kind: str, shape: tuple[int, int, int]) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield the resolution, offset and size (x, y, z) of each level."""
    if kind == "image":
        first, size, zoom, mips = list(_OFFSET), [shape[2], shape[1], shape[0]], 1, 3
    else:
        window = _label_window(shape)[::-1]
        half = (_OFFSET[0] // 2, _OFFSET[1] // 2, _OFFSET[2])
        first = [o + a for o, (a, _) in zip(half, window, strict=True)]
        size, zoom, mips = [b - a for a, b in window], 2, 2
    for mip in range(mips):
        by = (2**mip, 2**mip, 1)
        resolution = [_RESOLUTION[0] * zoom * by[0], _RESOLUTION[1] * zoom * by[1], _RESOLUTION[2]]
        yield (
            resolution,
            [o // f for o, f in zip(first, by, strict=True)],
            [-(-n // f) for n, f in zip(size, by, strict=True)],
        )


def _open_level(cloudpath: str, kind: str, mip: int, shape: tuple[int, int, int]) -> Any:
    """Open one level for writing; for level 0, write the info file first."""
    from cloudvolume import CloudVolume

    if mip > 0:
        return CloudVolume(cloudpath, mip=mip, progress=False, compress=False)
    is_image = kind == "image"
    info: dict[str, Any] = {
        "@type": "neuroglancer_multiscale_volume",
        "type": kind,
        "data_type": "uint8" if is_image else "uint64",
        "num_channels": 1,
        "scales": [],
    }
    for resolution, offset, size in _scales(kind, shape):
        scale: dict[str, Any] = {
            "key": "_".join(str(r) for r in resolution),
            "resolution": resolution,
            "voxel_offset": offset,
            "size": size,
            "chunk_sizes": [list(_IMAGE_CHUNK if is_image else _LABEL_CHUNK)],
            "encoding": "raw" if is_image else "compressed_segmentation",
        }
        if not is_image:
            scale["compressed_segmentation_block_size"] = [8, 8, 8]
        info["scales"].append(scale)
    volume = CloudVolume(cloudpath, info=info, mip=0, progress=False, compress=False)
    volume.commit_info()
    volume.provenance.description = f"Generated by imageryxr.sample, version {_VERSION}: no real tissue."
    volume.commit_provenance()
    return volume


def _write_slices(volume: Any, block: npt.NDArray[Any], z: int) -> None:
    """Write whole slices (z, y, x), beginning at slice `z` of the volume."""
    x0, y0, z0 = (int(v) for v in volume.voxel_offset)
    nz, ny, nx = block.shape
    volume[x0 : x0 + nx, y0 : y0 + ny, z0 + z : z0 + z + nz] = block.T[..., np.newaxis]


def _quarters(block: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Return four arrays, one for each position in 2 x 2 voxels; an odd edge is repeated."""
    block = np.pad(block, ((0, 0), (0, block.shape[1] % 2), (0, block.shape[2] % 2)), mode="edge")
    return block[:, ::2, ::2], block[:, ::2, 1::2], block[:, 1::2, ::2], block[:, 1::2, 1::2]


def _mean2(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    a, b, c, d = (q.astype(np.uint16) for q in _quarters(grey))
    return ((a + b + c + d + 2) >> 2).astype(np.uint8)


def _mode2(ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the most frequent id of each 2 x 2 voxels; the last pair or voxel wins a tie."""
    a, b, c, d = _quarters(ids)
    return np.where((a == b) | (a == c), a, np.where(b == c, b, d))
