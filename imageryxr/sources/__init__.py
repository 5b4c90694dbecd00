"""Sources of volumes. Each subpackage turns one kind of address into a `Source`."""
