"""Decoders of stored chunks, and checks of what they are given."""
