"""Quantised checkpoints: tensors that are dequantised when they are read.

A checkpoint of each format stores a matrix as codes and scales under names of its own. What the packages
above see is one `Tensor` for each matrix, by the name that it has in the unquantised checkpoint.
"""
