"""Backend for xarray: ``xr.open_dataset(source, engine="imageryxr")``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from imageryxr.core.bbox import DIMS, BBox
from imageryxr.errors import OptionError, format_value
from imageryxr.graph.labelled import volume_of
from imageryxr.graph.lazy_indexing import IndexedExprArray, LazyExprArray
from imageryxr.ops.open import Mip, open_image, open_multiscale, open_segmentation
from imageryxr.sources.base import LayerType
from imageryxr.sources.resolve import resolve_source

# xarray's options that decode CF conventions. They have no effect, since volumes do not use CF conventions.
_CF_OPTIONS = (
    "mask_and_scale",
    "decode_times",
    "decode_timedelta",
    "use_cftime",
    "concat_characters",
    "decode_coords",
)
_SOURCE_OPTIONS = ("missing", "token", "channel", "time", "assume", "agglomerate", "timestamp", "connection")
_PREFIXES = ("precomputed://", "graphene://", "zarr://", "zarr2://", "zarr3://")


class ImageryBackend(BackendEntrypoint):
    """Backend that opens a level of an image or segmentation as a Dataset, or all levels as a tree; lazy."""

    description = "Connectomics volumes: Neuroglancer precomputed, CAVE graphene and OME-Zarr"
    supports_groups = True
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "group",
        "mip",
        "bbox",
        "layer_type",
        "ids",
        *_SOURCE_OPTIONS,
        *_CF_OPTIONS,
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | int | None = None,
        mip: Mip = None,
        bbox: BBox | None = None,
        layer_type: LayerType | None = None,
        ids: Iterable[int] | None = None,
        **options: Any,
    ) -> xr.Dataset:
        """Open a level as a Dataset; reads metadata only.

        Parameters
        ----------
        filename_or_obj : str, path or Source
            As in `imageryxr.open_image`.
        drop_variables : str or iterable of str, optional
            Variables to omit.
        group : str or int, optional
            The name of the level in `open_datatree`, such as ``"/1"``; an alternative to ``mip``.
        mip, bbox
            As in `imageryxr.open_image`.
        layer_type : {"image", "segmentation"}, optional
            How to open the layer. Default: the type that the layer declares.
        ids : iterable of int, optional
            Keep these ids of a segmentation only, as in `imageryxr.open_segmentation`.
        **options
            ``missing``, ``token``, ``channel``, ``time``, ``assume``, ``connection`` as in `imageryxr.open_image`;
            ``agglomerate`` and ``timestamp`` as in `imageryxr.open_segmentation`. ``mask_and_scale`` and xarray's other
            CF options have no effect, since volumes do not use CF conventions.

        Returns
        -------
        Dataset
            One variable, ``image`` or ``segmentation``.

        Raises
        ------
        ImageryError
            As in `imageryxr.open_image`.
        """
        chosen = _source_options(options)
        layer = resolve_source(filename_or_obj, layer_type, **chosen)
        places: dict[str, Any] = {"mip": _mip_of(group, mip), "bbox": bbox}
        if "missing" in chosen:
            places["missing"] = chosen["missing"]
        if layer.layer_type == "segmentation":
            array = open_segmentation(layer, ids=ids, **places)
        elif ids is not None:
            raise OptionError(f"ids= selects segments, but {layer.name} is an image; omit ids")
        else:
            array = open_image(layer, **places)
        return _without(_lazily_indexed(array).to_dataset(), drop_variables)

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        bbox: BBox | None = None,
        **options: Any,
    ) -> dict[str, xr.Dataset]:
        """Open each level as a Dataset, by the name of its group; reads metadata only.

        Parameters
        ----------
        filename_or_obj, drop_variables, bbox, **options
            As in `open_dataset`.
        group : str, optional
            Return this level only, as the root.

        Returns
        -------
        dict
            ``"/"`` with the attrs of the layer, and ``"/0"``, ``"/1"``, … as in `imageryxr.open_multiscale`.

        Raises
        ------
        ImageryError
            As in `imageryxr.open_multiscale`.
        """
        if group not in (None, "", "/"):
            level = self.open_dataset(filename_or_obj, drop_variables=drop_variables, group=group, bbox=bbox, **options)
            return {"/": level}
        tree = open_multiscale(filename_or_obj, bbox=bbox, **_source_options(options))
        return {node.path: _without(node.to_dataset().map(_lazily_indexed), drop_variables) for node in tree.subtree}

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open all levels as a tree, as in `imageryxr.open_multiscale`; reads metadata only.

        Parameters
        ----------
        filename_or_obj, **options
            As in `open_groups_as_dict`.

        Returns
        -------
        DataTree
            Children ``"/0"``, ``"/1"``, … by mip.

        Raises
        ------
        ImageryError
            As in `imageryxr.open_multiscale`.
        """
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether an address has the prefix of a supported format, or is a local folder with an ``info`` file.

        If netCDF4 is installed, xarray tries its engine first, which accepts every URL. A URL then requires
        ``engine="imageryxr"``, or an order of engines without netCDF4:
        ``xr.set_options(netcdf_engine_order=["h5netcdf"])`` and ``xr.backends.refresh_engines()``.
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        text = os.fspath(filename_or_obj)
        if text.startswith(_PREFIXES):
            return True
        folder = Path(text)
        return "://" not in text and (folder / "info").is_file()


def _source_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a source, without xarray's CF options; raise `OptionError` if one is unknown."""
    unknown = [name for name in options if name not in (*_SOURCE_OPTIONS, *_CF_OPTIONS)]
    if unknown:
        known = ", ".join(("mip", "bbox", "layer_type", "ids", *_SOURCE_OPTIONS))
        raise OptionError(f"the engine imageryxr has no option {unknown[0]!r}; it has {known}")
    return {name: value for name, value in options.items() if name in _SOURCE_OPTIONS}


def _mip_of(group: str | int | None, mip: Mip) -> Mip:
    if group is None or group in ("", "/"):
        return mip
    if mip is not None:
        raise OptionError(
            f"group={format_value(group)} and mip={format_value(mip)} both select the level; give only one of them"
        )
    name = str(group).strip("/")
    if not name.isdecimal():
        raise OptionError(f"group={format_value(group)} is not a level; levels are named by their mip, e.g. group='/1'")
    return int(name)


def _lazily_indexed(array: xr.DataArray) -> xr.DataArray:
    """Return an opened array as a lazily indexed array, to which xarray can add dask blocks or a cache."""
    volume = volume_of(array)
    if volume.in_memory or volume.dask_inputs:
        return array
    field = IndexedExprArray(LazyExprArray(volume.expr, volume.grid.shape))
    plain = xr.DataArray(xr.Variable(DIMS, field, array.attrs), coords=array.coords, name=array.name)
    # DataArray drops the encoding of its variable, which contains the block sizes for chunks={}.
    plain.encoding = dict(array.encoding)
    return plain


def _without(dataset: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    dropped = [names] if isinstance(names, str) else list(names or [])
    return dataset.drop_vars(dropped, errors="ignore")
