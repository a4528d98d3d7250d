"""Tries to break FaaSMoE: malformed input, faults, and hours of load."""
