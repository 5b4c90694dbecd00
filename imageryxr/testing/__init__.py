"""The generated sample volume, and a local CAVE datastack for examples and tests."""
