"""One memory, seen by torch and by NumPy."""

import numpy as np
import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A view of the tensor's memory; a copy only if it is not contiguous.

    NumPy has no bfloat16, so the view of a bfloat16 tensor has its bits as uint16.
    """
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`: a view of the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
