"""Security tests of links, servers and stored data."""
