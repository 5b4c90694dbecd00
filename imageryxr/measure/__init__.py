"""Measurements and cutouts."""
