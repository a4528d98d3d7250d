"""Answers plain calls in C, without the interpreter lock: the extension `_fast_path`, and its state.

The extension is optional. Without it, Python answers all calls, and does so in the same way.
"""
