"""Bring blocks to another grid: gathers, linear interpolation, weighted means, of colours too, majority labels."""

from imageryxr.kernels.axis_weights import Lerp, Overlap
from imageryxr.kernels.downsample import mean, mode
from imageryxr.kernels.downsample_rgba import mean_rgba
from imageryxr.kernels.interpolate import linear, nearest

__all__ = ["Lerp", "Overlap", "linear", "mean", "mean_rgba", "mode", "nearest"]
