"""Expressions, the lazy descriptions of arrays, and all code that builds dask graphs."""
