"""Arrays of numpy as tensors of torch and back, bfloat16 too."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from shoal.compute.torch_graph.node import Tensor


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the host that shares the array's memory where that may be.

    Args:
        array: Of a dtype that travels, with any strides. The tensor is never written to.
    """
    plain = np.ascontiguousarray(array).reshape(array.shape)
    if plain.dtype.name == "bfloat16":
        return to_tensor(plain.view(np.uint16)).view(torch.bfloat16)
    if not plain.dtype.isnative:
        plain = plain.astype(plain.dtype.newbyteorder("="))
    try:
        return torch.from_dlpack(plain)
    except BufferError:  # numpy before 2.1 lends no memory that may not be written
        return torch.from_numpy(plain.copy())


def to_array(tensor: Tensor) -> np.ndarray:
    """An array on the host, in C order, of memory of its own or of the tensor's."""
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
