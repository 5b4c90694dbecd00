"""Export arrays of cutouts: as Zarr with one chunk per cutout, as pictures, or as a page."""
