"""One thread a test: two threads that wait for each other on busy cores are many times slower than one."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def double():
    """float64 and a fixed start, for tests that compare formulas."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
