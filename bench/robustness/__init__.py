"""Breaks a running FaaSMoE on purpose: faults, hours of load, malformed input."""
