"""Neuroglancer precomputed layers."""
