"""Breaks a running FaaSMoE on purpose, with faults, load and malformed input, and counts what its clients notice."""
