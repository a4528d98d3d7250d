"""Checkpoints in GGUF, llama.cpp's format: one file, or some, with weights, config and tokenizer."""
