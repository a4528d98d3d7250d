"""The C library, for what Python has no function."""

import ctypes

C_LIBRARY = ctypes.CDLL(None, use_errno=True)
"""Opened once, when it is imported: each further object has a class of its own."""
