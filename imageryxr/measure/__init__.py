"""Measurements of segmentations, and cutouts."""
