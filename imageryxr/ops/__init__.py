"""Verbs on labelled arrays: open, align, crop, slice, select."""
