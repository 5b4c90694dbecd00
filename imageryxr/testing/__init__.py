"""The generated sample volume."""
