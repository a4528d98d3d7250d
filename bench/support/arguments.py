"""What several command lines ask of their arguments."""

import argparse


def count(text: str) -> int:
    """A number above zero, as a type for argparse. Raises `ArgumentTypeError` for anything else."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)
