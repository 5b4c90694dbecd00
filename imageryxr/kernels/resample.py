"""Bring blocks to another grid: gathers, linear interpolation, weighted means, of colours too, majority labels."""

from imageryxr.kernels.axes import Lerp, Overlap
from imageryxr.kernels.interpolate import linear, nearest
from imageryxr.kernels.shrink import mean, mode
from imageryxr.kernels.shrink_rgba import mean_rgba

__all__ = ["Lerp", "Overlap", "linear", "mean", "mean_rgba", "mode", "nearest"]
