"""The formats that exports write: a `Target` each, in a module of its own."""
