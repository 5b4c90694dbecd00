"""Bring blocks to another grid: gathers, linear interpolation, weighted means, majority labels."""

from imageryxr.kernels.axes import Lerp, Overlap
from imageryxr.kernels.interpolate import linear, nearest
from imageryxr.kernels.shrink import mean, mode

__all__ = ["Lerp", "Overlap", "linear", "mean", "mode", "nearest"]
