"""Finds out what a checkpoint's model is, with transformers, and tries whether FaaSMoE computes the same."""
