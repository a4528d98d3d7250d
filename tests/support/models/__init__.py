"""Small checkpoints, partitions and engines, and fixtures with them."""
