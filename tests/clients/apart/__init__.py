"""Clients that need other versions of packages than the rest: they run in an environment of their own."""
