"""Keeps what ended sequences have computed, for later prompts of their tenants that begin alike."""
