"""The device of these tests: CUDA; a CPU, at tiny sizes, where `GAKD_GPU_DRY_RUN` is 1; else all are left out."""

from __future__ import annotations

import os

import pytest
import torch

from tests.gpu.check_part import is_dry

# Before CUDA is first used, for products that are the same bits twice.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if is_dry():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: `make gpu`")
    return torch.device("cuda", torch.cuda.current_device())
