"""Messages for Zarr groups and arrays that are not images: what they contain, and which address to open instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imageryxr.sources.address import Address

Attributes = Callable[[str], dict[str, Any]]
"""Function that returns the OME metadata of the subgroup at a path; an empty dict if it has none."""


def non_image_message(address: Address, ome: dict[str, Any], attributes: Attributes) -> str:
    """Return the content of a group without an image, and the addresses that open it, as the end of a sentence.

    The sentence starts with the name of the group. `attributes` reads the metadata of a subgroup.
    """
    name = f"zarr://{address.public}"
    if isinstance(ome.get("plate"), dict):
        wells = _paths(ome["plate"].get("wells"))
        well = wells[0] if wells else "A/1"
        fields = _paths(_member(attributes(well), "well", "images")) or ["0"]
        return f"is a plate of many images; give one of them, such as {name}/{well}/{fields[0]}"
    if isinstance(ome.get("labels"), list):
        found = [str(label) for label in ome["labels"] if isinstance(label, str)]
        return f"lists the labels of an image; give one of them: {_addresses(name, found) or name + '/NAME'}"
    if isinstance(ome.get("well"), dict):
        fields = _paths(ome["well"].get("images")) or ["0"]
        return f"is a well with {len(fields)} images; give one of them: {_addresses(name, fields)}"
    if "bioformats2raw.layout" in ome:
        series = attributes("OME").get("series")
        images = [s for s in series if isinstance(s, str)] if isinstance(series, list) else ["0"]
        return f"holds the images of a bioformats2raw folder; give one of them: {_addresses(name, images)}"
    below = child_images(address, attributes)
    if below:
        return f"is a Zarr group without OME metadata, which holds images; give one of them: {_addresses(name, below)}"
    # `child_images` has found that no group in a local folder is an image.
    image = "" if address.local_path is not None else f"give the group of an image, such as {name}/0; "
    return (
        f"is a Zarr group without OME metadata (no 'multiscales'); {image}open a group that xarray wrote, such as "
        f"cutouts, with xarray.open_zarr; or open one of its arrays: "
        f"{array_advice(address, 'ARRAY', None)}"
    )


def child_images(address: Address, attributes: Attributes) -> list[str]:
    """Return the names of the images in a local folder, among its first 50 folders."""
    path = address.local_path
    try:
        children = sorted(p.name for p in path.iterdir() if p.is_dir())[:50] if path is not None else []
    except OSError:
        return []
    return [child for child in children if attributes(child).get("multiscales")]


def bare_array_message(address: Address, document: dict[str, Any]) -> str:
    """Return how to open a Zarr array without OME metadata, as the end of a sentence that starts with its name."""
    above = f"zarr://{address.public}".rpartition("/")[0]
    shape = document.get("shape")
    count = len(shape) if isinstance(shape, list) else None
    return (
        f"is a bare Zarr array without a position; give its parent group if that has OME metadata ({above}), or "
        f"add coordinates: {array_advice(address, '', count)}"
    )


def array_advice(address: Address, path: str, count: int | None) -> str:
    """Return code that opens the array at a path of a group and adds coordinates; the code reads no voxels.

    `count` is the number of its axes, if known.
    """
    place = f"{address.public.removeprefix('file://')}/{path}".rstrip("/")
    if address.local_path is not None:
        opened = f"dask.array.from_zarr({place!r})"
    else:
        store = f"zarr.storage.ObjectStore(obstore.store.from_url({place!r}), read_only=True)"
        opened = f"dask.array.from_zarr(zarr.open_array({store}, mode='r'))"
    index = f"[{', '.join(['0'] * (count - 3))}]" if count is not None and count > 3 else ""
    return (
        f"array = {opened}{index}; em = xarray.DataArray(array, dims=('z', 'y', 'x'), "
        "coords=imageryxr.Grid(array.shape, (8, 8, 40), (0, 0, 0)).coords()), with the size of a voxel (x, y, z nm) "
        "in place of (8, 8, 40)"
    )


def _paths(entries: Any) -> list[str]:
    found = entries if isinstance(entries, list) else []
    return [e["path"].strip("/") for e in found if isinstance(e, dict) and isinstance(e.get("path"), str)]


def _member(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _addresses(name: str, paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(f"{name}/{path[:80]}" for path in paths[:5]) + more
