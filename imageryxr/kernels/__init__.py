"""Compiled functions on NumPy arrays; nothing here depends on dask or I/O."""
