"""OME-Zarr images and labels (NGFF 0.4 on Zarr v2, 0.5 on Zarr v3), read through zarr-python.

The format: https://ngff.openmicroscopy.org. Of several multiscales in a group the first one is opened. All metadata
are read here once, at opening, and travel with the source, so that a worker asks for chunks only.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.errors import (
    AuthError,
    ChunkReadError,
    CodecError,
    ImageryError,
    ImageryWarning,
    MissingChunkError,
    MissingChunkWarning,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.grid import DIMS, Grid, IndexBox, exact, tidy
from imageryxr.sources.address import Address, reads_anonymously
from imageryxr.sources.base import (
    Assume,
    LayerType,
    Level,
    Missing,
    Source,
    check_assume,
    note_holes,
    pick_index,
    plain,
    read_error,
    read_filled,
)

# Nanometres per unit, by the names that NGFF takes from UDUNITS, and the abbreviations found in the wild.
UNITS: dict[str, Fraction | int] = {
    "picometer": Fraction(1, 1000), "angstrom": Fraction(1, 10), "nanometer": 1, "micrometer": 10**3, "micron": 10**3,
    "millimeter": 10**6, "centimeter": 10**7, "decimeter": 10**8, "meter": 10**9, "kilometer": 10**12,
    "pm": Fraction(1, 1000), "nm": 1, "um": 10**3, "µm": 10**3, "μm": 10**3, "mm": 10**6, "cm": 10**7, "m": 10**9,
}  # fmt: skip

PROTOCOLS = ("file", "http", "https", "s3", "gs")

# Object stores are asked again about errors that may pass, for half a minute at the most.
RETRY: dict[str, Any] = {
    "max_retries": 7,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}


@dataclass(frozen=True)
class ZarrLevel:
    """Where a level's array lies in the store, and how it is laid out."""

    path: str
    """Path of the array in the group."""
    metadata: str
    """What its ``zarr.json`` or ``.zarray`` says, without its attributes."""
    objects: tuple[int, ...]
    """Shape, along all axes, of one stored object: a chunk, or a shard."""


@dataclass(frozen=True)
class OmeZarrSource:
    """An OME-Zarr image or label with its metadata in hand."""

    url: str = field(repr=False)
    """Where the group lies, ``protocol://…``."""
    name: str
    """Its address without anything secret."""
    layer_type: LayerType
    """What it is opened as."""
    type: str
    """dtype of the voxels, by name."""
    levels: tuple[Level, ...]
    """Every dataset of the multiscale."""
    arrays: tuple[ZarrLevel, ...] = field(repr=False)
    """How each level is stored."""
    axes: tuple[str, ...]
    """Names of the axes as stored: z, y, x, c, t."""
    picks: tuple[tuple[str, int], ...]
    """The index chosen along each axis that is not space."""
    missing: Missing = "raise"
    """What to do about a chunk that the store does not have."""
    window: tuple[float, float] | None = None
    """The contrast limits that the file gives for the channel."""
    token: str | None = field(default=None, repr=False, compare=False)
    """What is sent to a web server as ``Authorization: Bearer``."""

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.type)
        return dtype

    @property
    def attrs(self) -> dict[str, Any]:
        """The contrast limits, where the file gives them."""
        return {} if self.window is None or self.layer_type != "image" else {"contrast_limits": self.window}

    def check(self, mip: int) -> None:
        """Raise `CodecError` if the array's codecs are not there."""
        try:
            _array_metadata(self.arrays[mip].metadata)
        except ValueError as error:
            codec = re.search(r"'+([^']+)'+", str(error))
            raise CodecError(
                f"{self.name} is stored with the codec {codec[1] if codec else '?'!r}, which zarr does not have here "
                f"({plain(error)}); install the package that brings it, e.g. pip install 'imageryxr[codecs]'"
            ) from error

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box (z, y, x), 0 outside the array."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the array."""
        import zarr
        from zarr.storage import StorePath

        self.check(mip)
        where: dict[str, Any] = {**dict(self.picks), **dict(zip(DIMS, box.slices(), strict=True))}
        stored = self.arrays[mip]
        with _failures(self.name, lambda error: read_error(self, mip, box, error)):
            recorder = _recorder()(_store(self.url, self.token, os.getpid()))
            array = zarr.Array(zarr.AsyncArray(_array_metadata(stored.metadata), StorePath(recorder, stored.path)))
            values = np.asarray(array[tuple(where[axis] for axis in self.axes)])
        if recorder.absent:
            self._tell_holes(mip, box, recorder.absent)
        if "z" not in self.axes:
            values = values[np.newaxis]
        order = [axis for axis in ("z", *self.axes) if axis in DIMS][-3:]
        return np.ascontiguousarray(values.transpose([order.index(d) for d in DIMS]), dtype=self.dtype)

    def _tell_holes(self, mip: int, box: IndexBox, absent: dict[str, bool]) -> None:
        # zarr gives an object that the store does not have as its fill value, in silence.
        refused = [key for key, forbidden in absent.items() if forbidden]
        if refused and _fetch(self.url, self.token, self._document, self.name) is None:
            raise AuthError(f"{self.name} refused to be read (403: {refused[0]}); check the token or your rights")
        grid = self.levels[mip].grid
        holes = [str(grid.crop(self._hole(mip, key)).bbox) for key in sorted(absent)]
        shown = "; ".join(holes[:3]) + (f"; and {len(holes) - 3} more" if len(holes) > 3 else "")
        if self.missing == "raise":
            hint = (
                "a Zarr store may leave out chunks that hold only the fill value: missing='fill' takes them for that, "
                "'warn' also says which"
            )
            state = "refuses (403)" if refused else "does not have"
            cause = f"the store {state} {len(holes)} of the chunks it needs: {shown}"
            raise read_error(self, mip, box, cause, kind=MissingChunkError, hint=hint)
        note_holes(self, mip, holes)
        if self.missing == "warn":
            warnings.warn(
                f"{self.name}, mip {mip}: {len(holes)} missing chunks are filled with the fill value: {shown}",
                MissingChunkWarning,
                stacklevel=2,
            )

    @property
    def _document(self) -> str:
        return "zarr.json" if '"zarr_format": 3' in self.arrays[0].metadata else ".zattrs"

    def _hole(self, mip: int, key: str) -> IndexBox:
        level, stored = self.levels[mip], self.arrays[mip]
        index = [int(part) for part in re.split(r"[/.]", key.removeprefix(stored.path)) if part.isdigit()]
        place = dict(zip(self.axes, zip(index, stored.objects, strict=True), strict=True))
        (z, dz), (y, dy), (x, dx) = (place.get(dim, (0, 1)) for dim in DIMS)
        start = (z * dz, y * dy, x * dx)
        return IndexBox(start, (start[0] + dz, start[1] + dy, start[2] + dx)).clip(level.grid.box)

    def __dask_tokenize__(self) -> object:
        levels = [(astuple(lv.grid), lv.chunks) for lv in self.levels]
        stored = [astuple(a) for a in self.arrays]
        layout = (self.axes, self.picks, self.layer_type, self.type, self.window)
        return ("imageryxr.omezarr", self.url, levels, stored, layout, self.missing)


# ---------------------------------------------------------------------------------------------------------
# stores


@lru_cache(maxsize=1024)
def _array_metadata(text: str) -> Any:
    from zarr import AsyncArray
    from zarr.storage import MemoryStore, StorePath

    return AsyncArray(json.loads(text), StorePath(MemoryStore())).metadata


@lru_cache(maxsize=1)
def _recorder() -> Any:
    from zarr.storage import WrapperStore

    class Recorder(WrapperStore[Any]):
        """A store that notes which objects it did not have, for the length of one read."""

        def __init__(self, store: Any) -> None:
            super().__init__(store)
            self.absent: dict[str, bool] = {}

        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            for last in (False, False, True):
                try:
                    found = await self._store.get(key, *args, **kwargs)
                except Exception as error:
                    # Buckets that may not be listed answer 403 for what is not there: `_tell_holes` finds out which.
                    if type(error).__name__ == "PermissionDeniedError":
                        self.absent[key] = True
                        return None
                    # obstore tries all else again, but not a transfer that was cut in its middle.
                    if last or "body error" not in str(error):
                        raise
                else:
                    break
            if found is None:
                self.absent[key] = False
            return found

    return Recorder


@lru_cache(maxsize=64)
def _store(url: str, token: str | None, pid: int) -> Any:
    # One store a process, shared by its threads.
    from zarr.storage import LocalStore, ObjectStore

    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return LocalStore(rest, read_only=True)
    if _forked():
        raise ChunkReadError(
            "this process was forked from one that had already read over the network, and such connections do not "
            "outlive a fork; start workers with multiprocessing's 'spawn' or 'forkserver', as dask.distributed does"
        )
    from obstore.store import GCSStore, HTTPStore, S3Store

    client: dict[str, Any] = {"allow_http": True, "connect_timeout": "15s", "timeout": "180s"}
    common: dict[str, Any] = {"client_options": client, "retry_config": RETRY}
    if scheme in ("http", "https"):
        if token is not None:
            client["default_headers"] = {"Authorization": f"Bearer {token}"}
        return ObjectStore(HTTPStore.from_url(url, **common), read_only=True)
    bucket, _, prefix = rest.partition("/")
    options = _bucket_options(url, bucket)
    kind: Any = S3Store if scheme == "s3" else GCSStore
    return ObjectStore(kind(bucket, prefix=prefix or None, **common, **options), read_only=True)


def _bucket_options(url: str, bucket: str) -> dict[str, Any]:
    from cloudfiles import secrets

    if url.startswith("gs://"):
        key = next((p for p in map(secrets.secretpath, _secret_files(bucket, "google")) if os.path.exists(p)), None)
        return {"skip_signature": True} if reads_anonymously(url) else ({"service_account": key} if key else {})
    if reads_anonymously(url):
        said = {"AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"}
        if said & set(os.environ) or "." in bucket:
            return {"skip_signature": True}
        # Without a region only the bucket's own host finds it, and unsigned requests need to name none.
        host = {"virtual_hosted_style_request": True, "endpoint": f"https://{bucket}.s3.amazonaws.com"}
        return {"skip_signature": True, **host}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    if any(os.path.exists(secrets.secretpath(name)) for name in _secret_files(bucket, "aws")):
        return {name.lower(): value for name, value in secrets.aws_credentials(bucket).items() if value}
    import boto3  # type: ignore[import-untyped]
    from obstore.auth.boto3 import Boto3CredentialProvider

    return {"credential_provider": Boto3CredentialProvider(boto3.Session())}


def _secret_files(bucket: str, kind: str) -> tuple[str, str]:
    return (f"{bucket}-{kind}-secret.json", f"{kind}-secret.json")


@lru_cache(maxsize=1)
def _forked() -> list[bool]:
    # obstore's threads are not there in a forked child, which would wait for them for ever.
    marks: list[bool] = []
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: marks.append(True))
    return marks


@contextmanager
def _failures(name: str, otherwise: Any) -> Iterator[None]:
    try:
        yield
    except ImageryError:
        raise
    except Exception as error:
        message = plain(str(error).split("Debug source:")[0])  # the rest is the client's inner state
        if isinstance(error, PermissionError) or type(error).__name__ in (
            "UnauthenticatedError",
            "PermissionDeniedError",
        ):
            raise AuthError(f"{name} refused to be read ({message}); check the token or your rights") from error
        raise otherwise(message or type(error).__name__) from error


def _fetch(url: str, token: str | None, key: str, name: str) -> bytes | None:
    """Return an object of a store, or None where there is none, or none that may be read."""
    with _failures(name, lambda error: ChunkReadError(f"could not read the metadata of {name} ({key}): {error}")):
        try:
            if url.startswith("file://"):
                return (Path(url.removeprefix("file://")) / key).read_bytes()
            import obstore

            return bytes(obstore.get(_store(url, token, os.getpid()).store, key).bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except Exception as error:
            if type(error).__name__ != "PermissionDeniedError":
                raise
            return None


def _fetch_json(address: Address, token: str | None, key: str) -> dict[str, Any] | None:
    data = _fetch(address.url, token, key, f"zarr://{address.public}")
    try:
        found = None if data is None else json.loads(data)
    except ValueError as error:
        raise SourceError(f"{address.public}/{key} is not JSON ({error}): a login page or a broken file?") from None
    if found is not None and not isinstance(found, dict):
        raise SourceError(f"{address.public}/{key} holds a {type(found).__name__}, not a JSON object")
    return found


# ---------------------------------------------------------------------------------------------------------
# opening


def open_omezarr(
    address: Address,
    *,
    missing: Missing = "raise",
    token: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    assume: Assume = "center",
) -> OmeZarrSource:
    """Return the source of an OME-Zarr group; reads metadata only.

    Parameters
    ----------
    address : Address
        Of the group that holds the ``multiscales``.
    missing : {"raise", "fill", "warn"}
        What to do about an object (a chunk, or a shard) that the store does not have. What a shard's own index
        leaves out was left out on purpose, and is read as the fill value. A 403 counts as missing as long as the
        metadata can be read.
    token : str, optional
        Sent to web servers as ``Authorization: Bearer``. It is not shown, but it is pickled with the source.
    channel, time : int, optional
        Which to open, where there are several.
    assume : {"center", "corner"}
        What a translation is the place of: the centre of the first voxel, or its lower corner. No translation is one
        of 0.

    Raises
    ------
    SourceNotFoundError
        If there is no Zarr group.
    SourceError
        If it is no OME-Zarr image, or its metadata make no sense.
    OptionError
        If ``assume`` is neither.
    """
    check_assume(assume)
    name = f"zarr://{address.public}"
    if address.protocol not in PROTOCOLS:
        raise SourceError(f"{name}: OME-Zarr is read from {', '.join(PROTOCOLS)}, not from {address.protocol}://")
    ome, version = _ome_metadata(address, token)
    try:
        return _parsed(address, ome, version, missing, token, {"c": channel, "t": time}, assume)
    except ImageryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise SourceError(f"the OME metadata of {name} make no sense: {type(error).__name__}: {error}") from error


def _ome_metadata(address: Address, token: str | None) -> tuple[dict[str, Any], int]:
    name, path = f"zarr://{address.public}", address.local_path
    if path is not None and not path.is_dir():
        raise SourceNotFoundError(f"there is no folder {path}, so no OME-Zarr at {name}; check the path")
    document = _fetch_json(address, token, "zarr.json")
    version = 2 if document is None else 3
    if document is not None:
        attributes, is_array = document.get("attributes") or {}, document.get("node_type") == "array"
    else:
        attributes = _fetch_json(address, token, ".zattrs")
        is_array = not attributes and _fetch(address.url, token, ".zarray", name) is not None
        if attributes is None and not is_array and _fetch(address.url, token, ".zgroup", name) is None:
            raise SourceNotFoundError(
                f"there is no OME-Zarr at {name}: neither {address.public}/zarr.json (Zarr v3) nor "
                f"{address.public}/.zattrs (Zarr v2) is there, or may be read; check the path"
            )
    ome = (attributes or {}).get("ome", attributes or {})
    if not is_array and isinstance(ome, dict) and ome.get("multiscales"):
        return ome, version
    raise SourceError(f"{name} {_no_image(name, ome if isinstance(ome, dict) else {}, is_array)}")


def _no_image(name: str, ome: dict[str, Any], is_array: bool) -> str:
    if is_array:
        return (
            "is a bare Zarr array, which says nothing of its place; give the group above it if that has OME metadata "
            f"({name.rpartition('/')[0]}), or open it with xarray.open_zarr or zarr.open_array and place it: "
            "xr.DataArray(array, dims=('z', 'y', 'x'), coords=imageryxr.Grid(shape, resolution, voxel_offset).coords())"
        )
    if "plate" in ome:
        wells = [w.get("path") for w in ome["plate"].get("wells", [])][:1]
        return f"is a plate of many images; give one of them, such as {name}/{wells[0] if wells else 'A/1'}/0"
    if isinstance(ome.get("labels"), list):
        labels = ", ".join(f"{name}/{label}" for label in ome["labels"])
        return f"holds the list of an image's labels; give one of them: {labels}"
    if "well" in ome or "bioformats2raw.layout" in ome:
        return f"holds several images; give one of them, such as {name}/0"
    return (
        "is a Zarr group without OME metadata (no 'multiscales'); give the group of an image, such as "
        f"{name}/0, or open its arrays with xarray.open_zarr and place them with imageryxr.Grid"
    )


def _parsed(
    address: Address,
    ome: dict[str, Any],
    version: int,
    missing: Missing,
    token: str | None,
    asked: dict[str, int | None],
    assume: str,
) -> OmeZarrSource:
    name, multiscale = f"zarr://{address.public}", ome["multiscales"][0]
    axes, factors = _axes(name, multiscale)
    paths = [str(d["path"]) for d in multiscale["datasets"]]
    with ThreadPoolExecutor(8) as pool:
        documents = list(pool.map(lambda path: _array_document(address, token, path, version), paths))
    layouts = [_layout(name, path, d, len(axes)) for path, d in zip(paths, documents, strict=True)]
    types = {layout.dtype for layout in layouts}
    if len(types) > 1:
        raise SourceError(
            f"the levels of {name} differ in type ({', '.join(sorted(types))}), so they are not one image"
        )
    picks = _picks(name, axes, layouts[0].shape, asked)
    levels: list[Level] = []
    arrays = []
    for mip, layout in enumerate(layouts):
        grid = _grid(name, multiscale, mip, layout.shape, axes, factors, assume)
        if levels and "z" not in axes:
            grid = Grid(grid.shape, (*grid.resolution[:2], levels[0].grid.resolution[2]), grid.voxel_offset)
        own = [layout.chunks[axes.index(d)] if d in axes else 1 for d in DIMS]
        levels.append(Level(mip, grid, (own[0], own[1], own[2]), layout.encoding))
        document = {k: v for k, v in documents[mip].items() if k != "attributes"}
        arrays.append(ZarrLevel(paths[mip], json.dumps(document, sort_keys=True), layout.objects))
    is_label = "image-label" in ome or address.url.split("/")[-2:-1] == ["labels"]
    return OmeZarrSource(
        url=address.url,
        name=name,
        layer_type="segmentation" if is_label else "image",
        type=types.pop(),
        levels=tuple(levels),
        arrays=tuple(arrays),
        axes=axes,
        picks=picks,
        missing=missing,
        window=_window(ome, dict(picks).get("c", 0)),
        token=token,
    )


def _array_document(address: Address, token: str | None, path: str, version: int) -> dict[str, Any]:
    key = f"{path}/{'zarr.json' if version == 3 else '.zarray'}"
    found = _fetch_json(address, token, key)
    if found is None:
        raise SourceError(f"zarr://{address.public} lists the level {path!r}, but there is no {address.public}/{key}")
    return found


class _Layout(NamedTuple):
    """The shapes of an array, its chunks and its stored objects, its dtype and its encoding."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    objects: tuple[int, ...]
    dtype: str
    encoding: str


def _layout(name: str, path: str, document: dict[str, Any], count: int) -> _Layout:
    shape = tuple(int(n) for n in document["shape"])
    if document["zarr_format"] == 2:
        chunks = objects = tuple(document["chunks"])
        kind, codecs = document["dtype"], [document.get("compressor"), *(document.get("filters") or [])]
    else:
        chunks = objects = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
        kind, codecs = document["data_type"], document["codecs"]
        if codecs and codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            chunks, codecs = tuple(inner["chunk_shape"]), inner["codecs"]
    if len(shape) != count or len(chunks) != count:
        raise SourceError(f"{name}: the array {path!r} has {len(shape)} axes, but the metadata name {count}")
    dtype = np.dtype(kind) if isinstance(kind, str) else np.dtype(object)
    if dtype.kind not in "biuf":
        raise SourceError(f"{name} holds {kind!r}; voxels are integers, floats or booleans")
    dtype = np.dtype("uint8") if dtype.kind == "b" else dtype.newbyteorder("=")
    names = [str(c.get("name") or c.get("id")) for c in codecs if c]
    encoding = ", ".join(n for n in names if n not in ("bytes", "transpose")) or "raw"
    return _Layout(shape, tuple(chunks), tuple(objects), dtype.name, encoding)


def _axes(name: str, multiscale: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Fraction]]:
    entries = [{"name": a} if isinstance(a, str) else a for a in multiscale.get("axes", [])]
    names = [_axis_name(entry) for entry in entries]
    space = [i for i, axis in enumerate(names) if axis in DIMS or axis == "space"]
    if "space" in names:  # names of their own: NGFF orders them z, y, x
        for i, dim in zip(reversed(space), reversed(DIMS), strict=False):
            names[i] = dim
    if not {"y", "x"} <= set(names) or len(set(names)) < len(names) or "space" in names:
        shown = [str(entry.get("name")) for entry in entries]
        raise SourceError(f"{name} has the axes {shown}; understood are y and x, and with them z, c and t")
    units = {names[i]: entries[i].get("unit") for i in space}
    bare = [dim for dim, unit in units.items() if unit is None]
    if bare:
        message = f"{name} does not say in which unit {', '.join(bare)} are measured; they are taken as nanometres"
        warnings.warn(message, ImageryWarning, stacklevel=2)
    unknown = [unit for unit in units.values() if unit is not None and unit not in UNITS]
    if unknown:
        raise SourceError(f"{name} is measured in {unknown[0]!r}; understood are {', '.join(UNITS)}")
    return tuple(names), {dim: Fraction(UNITS[unit or "nanometer"]) for dim, unit in units.items()}


def _axis_name(entry: dict[str, Any]) -> str:
    given, kind = str(entry["name"]), entry.get("type")
    if given.lower() in DIMS and kind in (None, "space"):
        return given.lower()
    if kind in ("space", "channel", "time"):
        return {"space": "space", "channel": "c", "time": "t"}[str(kind)]
    return given


def _picks(
    name: str, axes: tuple[str, ...], shape: Sequence[int], asked: dict[str, int | None]
) -> tuple[tuple[str, int], ...]:
    kinds: dict[str, Literal["channel", "time"]] = {"c": "channel", "t": "time"}
    chosen = {
        axis: pick_index(name, what, shape[axes.index(axis)] if axis in axes else 1, asked[axis])
        for axis, what in kinds.items()
    }
    other = [a for a, n in zip(axes, shape, strict=True) if a not in (*DIMS, "c", "t") and n > 1]
    if other:
        raise SourceError(f"{name} has several voxels along {other[0]!r}, which is neither space, channel nor time")
    return tuple((axis, chosen.get(axis, 0)) for axis in axes if axis not in DIMS)


def _grid(
    name: str,
    multiscale: dict[str, Any],
    mip: int,
    shape: Sequence[int],
    axes: tuple[str, ...],
    factors: dict[str, Fraction],
    assume: str,
) -> Grid:
    scale, translation = _placed(name, multiscale, mip, len(axes))
    sizes, resolution, offset = [1, 0, 0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for i, dim in enumerate(DIMS):
        if dim in axes:
            k = axes.index(dim)
            if scale[k] <= 0:
                raise SourceError(
                    f"{name}: level {mip} has a scale of {float(scale[k])} along {dim}; it must be positive"
                )
            sizes[i] = shape[k]
            resolution[i] = float(scale[k] * factors[dim])
            offset[i] = tidy(translation[k] / scale[k] - (Fraction(1, 2) if assume == "center" else 0))
    resolution[0] = resolution[0] or resolution[2]  # a picture's one slice, from 0, is as thick as a voxel is wide
    return Grid((sizes[0], sizes[1], sizes[2]), tuple(resolution[::-1]), tuple(offset[::-1]))  # type: ignore[arg-type]


def _placed(name: str, multiscale: dict[str, Any], mip: int, count: int) -> tuple[list[Fraction], list[Fraction]]:
    scale, translation = [Fraction(1)] * count, [Fraction(0)] * count
    own = multiscale["datasets"][mip].get("coordinateTransformations") or []
    if not any(step.get("type") == "scale" for step in own):
        raise SourceError(
            f"{name}: level {mip} has no scale among its coordinateTransformations, so the size of a voxel is not "
            "known; open its array with xarray.open_zarr and place it with imageryxr.Grid"
        )
    for step in [*own, *(multiscale.get("coordinateTransformations") or [])]:
        kind = step.get("type")
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in step:
            raise SourceError(f"{name}: level {mip} is placed by {step}; understood are scales and translations")
        values = [exact(v) for v in step[kind]]
        translation = [(b * v if kind == "scale" else b + v) for b, v in zip(translation, values, strict=True)]
        scale = [a * v for a, v in zip(scale, values, strict=True)] if kind == "scale" else scale
    return scale, translation


def _window(ome: dict[str, Any], channel: int) -> tuple[float, float] | None:
    channels = (ome.get("omero") or {}).get("channels") or []
    window = (channels[channel].get("window") or {}) if channel < len(channels) else {}
    if "start" not in window or "end" not in window or window["start"] == window["end"]:
        return None
    return (float(window["start"]), float(window["end"]))


_: type[Source] = OmeZarrSource
