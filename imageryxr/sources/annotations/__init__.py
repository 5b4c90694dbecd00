"""Neuroglancer's precomputed annotations and skeletons."""
