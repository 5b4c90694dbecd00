"""Detection of unsupported file formats, and error messages with code that opens such files lazily.

The code runs unchanged. Its last variable, `em`, is a DataArray in dask blocks with coordinates in nm, which every
function of the package accepts.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_HEAD = "import dask.array as da, imageryxr as ix, xarray as xr"
_TAIL = "em = xr.DataArray(values, dims=('z', 'y', 'x'), coords=ix.Grid(values.shape, (8, 8, 40), (0, 0, 0)).coords())"
_MOST_FOLDERS = 200
"""Largest number of folders that are searched in an N5 container."""


def format_problem(path: str) -> str:
    """Return the format of an unsupported file or folder and how to open it, or an empty string.

    Reads headers, no voxels.

    Parameters
    ----------
    path : str
        A local path or a web address. The format behind a web address follows from its name only.

    Returns
    -------
    str
        The end of a sentence that begins with the path.
    """
    place = Path(path)
    is_local = "://" not in path
    name = path.lower()
    try:
        if is_local and place.is_dir():
            return _folder_problem(place)
    except OSError:
        return ""
    for suffixes, kind, make_code in _FORMATS:
        if name.endswith(suffixes):
            if not is_local:
                return f"is {kind}, an unsupported format; download it, and give its path to see how to open it"
            return _opening_advice(kind, make_code, place) if place.is_file() else ""
    if is_local and place.is_file():
        return "is a file, but volumes are folders: give a folder with an info file (precomputed) or an OME-Zarr"
    return ""


def _opening_advice(kind: str, make_code: Callable[[Path], tuple[str, str, str]], place: Path) -> str:
    """Return how to open a file; `make_code` returns a package to install, modules to import, and an expression."""
    try:
        package, imports, opened = make_code(place)
    except Exception:  # the content does not match the file name
        return (
            f"is {kind} by its name, an unsupported format, but its header is not valid: the file is incomplete, "
            "damaged or of another format. Copy or download it again, and give its path once more to see how to open "
            "it"
        )
    install = f"pip install {package}, then " if package and find_spec(imports.split(",")[0]) is None else ""
    modules = f", {imports}" if imports else ""
    return (
        f"is {kind}, an unsupported format. To open it as a lazy DataArray on a Grid, {install}run, with the voxel "
        f"size (x, y, z nm) in place of (8, 8, 40): {_HEAD}{modules}; values = {opened}; {_TAIL}"
    )


def _index_to_3d(text: str, count: int) -> str:
    """Return code that reduces an array expression with ``count`` axes to three, at index 0 of the others."""
    return f"{text}[None]" if count == 2 else f"{text}[{', '.join(['0'] * (count - 3))}]" if count > 3 else text


def _hdf5_code(place: Path) -> tuple[str, str, str]:
    name, count = "volumes/raw", 3
    if find_spec("h5py") is not None:
        import h5py  # type: ignore[import-untyped]

        found: list[tuple[int, str, int]] = []

        def add_dataset(path: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "iuf":
                found.append((int(np.prod(node.shape)), path, node.ndim))

        with h5py.File(place, "r") as file:
            file.visititems(add_dataset)
        _, name, count = max(found)
    return "h5py", "h5py", _index_to_3d(f"da.from_array(h5py.File({str(place)!r}, 'r')[{name!r}])", count)


def _tiff_code(place: Path) -> tuple[str, str, str]:
    import tifffile

    with tifffile.TiffFile(place) as file:
        series = file.series[0]
        count, levels = series.ndim, len(series.levels)
    level = ", level=0" if levels > 1 else ""
    store = f"tifffile.imread({str(place)!r}, aszarr=True{level})"
    return "", "tifffile, zarr", _index_to_3d(f"da.from_zarr(zarr.open_array({store}, mode='r'))", count)


def _memmap_code(place: Path, dtype: str, offset: int, shape: tuple[int, ...]) -> str:
    mapped = f"np.memmap({str(place)!r}, dtype={dtype!r}, mode='r', offset={offset}, shape={shape})"
    return _index_to_3d(_slicewise_code(mapped, shape, dtype), len(shape))


def _slicewise_code(mapped: str, shape: tuple[int, ...], dtype: str) -> str:
    """Return code for the dask array of a memory-mapped file, with a block per slice.

    `dask.array.from_array` would read the whole file at once, because it copies numpy arrays.
    """
    if len(shape) < 3:
        return f"da.from_delayed(dask.delayed(lambda: {mapped})(), {shape}, {dtype!r})"
    part = f"dask.delayed(lambda i: {mapped}[i])(i)"
    return f"da.stack([da.from_delayed({part}, {shape[1:]}, {dtype!r}) for i in range({shape[0]})])"


_NRRD_TYPES = {
    "u1": "uchar, unsigned char, uint8, uint8_t", "i1": "signed char, int8, int8_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u4": "uint, unsigned int, uint32, uint32_t", "i4": "int, signed int, int32, int32_t",
    "u8": "ulonglong, unsigned long long, uint64, uint64_t", "i8": "longlong, long long, int64, int64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip


def _nrrd_code(place: Path) -> tuple[str, str, str]:
    with place.open("rb") as file:
        head = file.read(1 << 16)
    text, blank, _ = head.partition(b"\n\n")
    if not head.startswith(b"NRRD") or not blank:
        raise ValueError("no header")
    lines = [line.split(": ", 1) for line in text.decode("latin-1").splitlines() if ": " in line and line[0] != "#"]
    fields = {key.lower(): value.strip() for key, value in lines}
    shape = tuple(int(n) for n in fields["sizes"].split())[::-1]
    kind = next(code for code, names in _NRRD_TYPES.items() if fields["type"] in names.split(", "))
    if fields["encoding"] == "raw" and not {"data file", "datafile"} & fields.keys():
        order = "" if kind[1] == "1" else ">" if fields.get("endian") == "big" else "<"
        return "", "numpy as np, dask", _memmap_code(place, order + kind, len(text) + 2, shape)
    # The file is compressed as a whole, so it is read whole for any voxel.
    whole = f"dask.delayed(nrrd.read)({str(place)!r}, index_order='C')[0]"
    return "pynrrd", "nrrd, dask", _index_to_3d(f"da.from_delayed({whole}, {shape}, {kind!r})", len(shape))


_MRC_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def _mrc_code(place: Path) -> tuple[str, str, str]:
    with place.open("rb") as file:
        head = file.read(1024)
    order = ">" if head[212:214] == b"\x11\x11" else "<"
    x, y, z, mode = (int(n) for n in np.frombuffer(head, f"{order}i4", 4))
    extra = int(np.frombuffer(head, f"{order}i4", 1, 92)[0])
    if min(x, y, z) < 1 or extra < 0 or len(head) < 1024:
        raise ValueError("no sizes")
    kind = _MRC_TYPES[mode]
    return "", "numpy as np, dask", _memmap_code(place, ("" if kind == "i1" else order) + kind, 1024 + extra, (z, y, x))


def _npy_code(place: Path) -> tuple[str, str, str]:
    stored = np.load(place, mmap_mode="r")
    code = _slicewise_code(f"np.load({str(place)!r}, mmap_mode='r')", stored.shape, stored.dtype.str)
    return "", "numpy as np, dask", _index_to_3d(code, stored.ndim)


def _npz_code(place: Path) -> tuple[str, str, str]:
    found = []
    with zipfile.ZipFile(place) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                is_short = np.lib.format.read_magic(file) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if is_short else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if len(shape) >= 2 and dtype.kind in "iuf":
                found.append((math.prod(shape), name.removesuffix(".npy"), shape, dtype.str))
    _, key, shape, kind = max(found, key=lambda array: array[0])  # of several such arrays the first
    # An array of the archive may be compressed as a whole, so it is read whole for any voxel.
    whole = f"dask.delayed(lambda: np.load({str(place)!r})[{key!r}])()"
    return "", "numpy as np, dask", _index_to_3d(f"da.from_delayed({whole}, {shape}, {kind!r})", len(shape))


def _nifti_code(place: Path) -> tuple[str, str, str]:
    return "nibabel", "nibabel", f"da.from_array(nibabel.load({str(place)!r}).dataobj).T"


def _picture_reader(place: Path) -> tuple[str, str, str]:
    from PIL import Image

    with Image.open(place) as picture:
        mode, (width, height) = picture.mode, picture.size
    kind = "u2" if mode.startswith("I;16") else "u1"
    convert = "" if mode in ("L", "I;16") else ".convert('L')"
    read = f"dask.delayed(lambda file: np.asarray(Image.open(file){convert}))"
    return "", f"dask, glob, numpy as np; from PIL import Image; read = {read}", f"{(height, width)}, {kind!r}"


def _picture_code(place: Path) -> tuple[str, str, str]:
    _, imports, shape = _picture_reader(place)
    return "", imports, f"da.from_delayed(read({str(place)!r}), {shape})[None]"


def _slices_code(place: Path) -> tuple[str, str, str]:
    first = _slice_files(place)[0]
    files = str(place / f"*{first.suffix}")
    if first.suffix.lower() in (".tif", ".tiff"):
        store = f"tifffile.imread({files!r}, aszarr=True)"
        return "", "tifffile, zarr", f"da.from_zarr(zarr.open_array({store}, mode='r'))"
    _, imports, shape = _picture_reader(first)
    by_number = "key=lambda file: re.sub('[0-9]+', lambda n: n[0].zfill(20), file)"  # z9 comes before z10
    ordered = f"sorted(glob.glob({files!r}), {by_number})"
    return "", f"re, {imports}", f"da.stack([da.from_delayed(read(file), {shape}) for file in {ordered}])"


def _slice_files(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.suffix.lower() in (*_PICTURES, ".tif", ".tiff"))


def _n5_arrays(place: Path) -> list[tuple[int, Path, dict[str, Any]]]:
    """Return the arrays of an N5 container as (voxels, folder, attributes), largest first."""
    found, waiting, seen = [], [place], 0
    while waiting and seen < _MOST_FOLDERS:
        folder = waiting.pop(0)
        seen += 1
        file = folder / "attributes.json"
        attributes = json.loads(file.read_text()) if file.is_file() else {}
        if "dimensions" in attributes and "blockSize" in attributes:
            found.append((int(np.prod(attributes["dimensions"])), folder, attributes))
        else:
            waiting += sorted(p for p in folder.iterdir() if p.is_dir())
    return sorted(found, key=lambda entry: -entry[0])


def _n5_code(place: Path) -> tuple[str, str, str]:
    _, folder, attributes = _n5_arrays(place)[0]
    kind, chunks, count = attributes["dataType"], tuple(attributes["blockSize"][::-1]), len(attributes["blockSize"])
    spec = f"{{'driver': 'n5', 'kvstore': {{'driver': 'file', 'path': {str(folder)!r}}}}}"
    read = "lambda block_info: n5[tuple(slice(*s) for s in block_info[None]['array-location'])].read().result()"
    blocks = f"chunks=da.core.normalize_chunks({chunks}, n5.shape)"
    meta = f"meta=np.empty({(0,) * count}, {kind!r})"
    opened = f"da.map_blocks({read}, {blocks}, dtype={kind!r}, {meta})"
    return (
        "tensorstore",
        f"tensorstore, numpy as np; n5 = tensorstore.open({spec}).result().T",
        _index_to_3d(opened, count),
    )


def _folder_problem(place: Path) -> str:
    if any((place / name).exists() for name in ("info", "zarr.json", ".zattrs", ".zarray", ".zgroup")):
        return ""
    if (place / "attributes.json").is_file() or place.suffix.lower() == ".n5":
        return _opening_advice("an N5 container", _n5_code, place)
    return _opening_advice("a folder of slices", _slices_code, place) if _slice_files(place) else ""


_FORMATS: tuple[tuple[tuple[str, ...], str, Callable[[Path], tuple[str, str, str]]], ...] = (
    ((".h5", ".hdf5", ".hdf", ".he5", ".mat"), "an HDF5 file", _hdf5_code),
    ((".ims",), "an Imaris file (HDF5)", _hdf5_code),
    ((".tif", ".tiff"), "a TIFF file", _tiff_code),
    ((".nrrd", ".nhdr"), "an NRRD file", _nrrd_code),
    ((".mrc", ".mrcs", ".map", ".rec"), "an MRC file", _mrc_code),
    ((".npy",), "a NumPy file", _npy_code),
    ((".npz",), "a NumPy archive", _npz_code),
    ((".nii", ".nii.gz"), "a NIfTI file", _nifti_code),
    (_PICTURES, "a picture", _picture_code),
)
