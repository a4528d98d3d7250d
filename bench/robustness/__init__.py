"""Breaks a running FaaSMoE on purpose, and counts what its clients notice."""
