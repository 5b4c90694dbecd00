"""Lazy descriptions of arrays, and the only place that builds dask graphs."""
