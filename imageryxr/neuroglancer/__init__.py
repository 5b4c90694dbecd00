"""Neuroglancer states: read from links, and written as links."""
