"""Decides which functions run, and how many bytes of weights each may hold."""
