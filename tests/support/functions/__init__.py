"""Processes, stand-ins, calls and kernels of expert functions."""
