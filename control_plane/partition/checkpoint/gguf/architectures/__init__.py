"""For each architecture of llama.cpp: config.json by the file's metadata, and transformers' names of tensors.

What llama.cpp's conversion does to weights is undone: permuted rows of queries and keys, norms with one
added, and the like. Names are those of a model's modules in transformers.
"""
