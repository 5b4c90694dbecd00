"""Floor 2: where volumes come from. Each module turns one kind of address into a `Source`."""
