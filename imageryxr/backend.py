"""The same sources through xarray's own door: ``xr.open_dataset(source, engine="imageryxr")``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from imageryxr.opening import open_image, open_segmentation
from imageryxr.sources.base import LayerType
from imageryxr.sources.resolve import resolve_source


class ImageryBackend(BackendEntrypoint):
    """Opens a level of an image or segmentation as a Dataset with one variable; lazy."""

    description = "Connectomics volumes: Neuroglancer precomputed, CAVE graphene and OME-Zarr"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "mip",
        "bbox",
        "layer_type",
        "missing",
        "token",
        "channel",
        "time",
        "assume",
        "agglomerate",
        "timestamp",
        "connection",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        layer_type: LayerType | None = None,
        **choices: Any,
    ) -> xr.Dataset:
        """Return the Dataset of a level; reads metadata only.

        Parameters
        ----------
        filename_or_obj : str, path or Source
            As in `imageryxr.open_image`.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        layer_type : {"image", "segmentation"}, optional
            How to open it. Default: as the layer says what it is.
        **choices
            ``mip``, ``bbox``, ``missing``, ``token``, ``channel``, ``time``, ``assume``, ``connection`` as in
            `imageryxr.open_image`; ``agglomerate`` and ``timestamp`` as in `imageryxr.open_segmentation`.

        Returns
        -------
        Dataset
            One variable, ``image`` or ``segmentation``.
        """
        told = {k: v for k, v in choices.items() if k not in ("mip", "bbox")}
        layer = resolve_source(filename_or_obj, layer_type, **told)
        opened = open_segmentation if layer.layer_type == "segmentation" else open_image
        places = {k: choices[k] for k in ("mip", "bbox", "missing") if k in choices}
        dataset = opened(layer, **places).to_dataset()
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or [])
        return dataset.drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether the address says that it is ours."""
        return isinstance(filename_or_obj, str) and filename_or_obj.startswith(("precomputed://", "graphene://"))
