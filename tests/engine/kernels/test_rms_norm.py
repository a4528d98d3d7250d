"""Every kernel's RMS norm against the module of transformers."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeRMSNorm

from control_plane.engine.kernels import available_dense_isas, load_dense_kernel
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch


@pytest.mark.parametrize("isa", available_dense_isas())
@pytest.mark.parametrize("size", [1, 7, 16, 96, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rms_norm_equals_transformers(dtype: torch.dtype, size: int, isa: str) -> None:
    torch.manual_seed(0)
    module = Qwen2MoeRMSNorm(size, eps=1e-5)
    module.weight.data = torch.randn(size)
    module = module.to(dtype)
    x = (torch.randn(5, size) * torch.tensor([1e-4, 0.0, 1.0, 30.0, 1e4])[:, None]).to(dtype)
    out = load_dense_kernel(isa).rms_norm(to_numpy(x), to_numpy(module.weight.detach()), 1e-5)
    # The order of a sum may turn a rounding over, by one place.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(to_torch(out), module(x).detach(), rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("isa", available_dense_isas())
def test_nan_stays_in_its_row(isa: str) -> None:
    x = np.ones((3, 32), np.float32)
    x[1, 5] = np.nan
    out = load_dense_kernel(isa).rms_norm(x, np.ones(32, np.float32), 0.0)
    assert np.isnan(out[1]).all()
    assert np.allclose(out[[0, 2]], 1)


@pytest.mark.parametrize("isa", available_dense_isas())
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (np.ones((2, 4), np.float32), np.ones(3, np.float32)),
        (np.ones((2, 4), np.float32), np.ones(4, np.uint16)),
        (np.ones((2, 4)), np.ones(4)),
        (np.ones(4, np.float32), np.ones(4, np.float32)),
    ],
)
def test_arguments_that_do_not_fit_are_refused(x: np.ndarray, weight: np.ndarray, isa: str) -> None:
    with pytest.raises(ValueError, match=r"must be|not rows"):
        load_dense_kernel(isa).rms_norm(x, weight, 1e-5)
