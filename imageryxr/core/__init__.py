"""Values and arithmetic: boxes, grids, colours, display settings. No dask and no I/O of volumes."""
