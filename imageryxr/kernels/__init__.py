"""Floor 0: compiled block functions. Arrays in, arrays out; nothing here knows of dask, xarray or I/O."""
