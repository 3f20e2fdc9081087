"""Layers compiled one by one on the card: as near the exact hidden states and gradients as eager ones, and few graphs."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch._dynamo.utils import counters
from transformers import Qwen3Config, Qwen3ForCausalLM

from gakd.models import compiling, hidden_rows
from gakd.models.compiling import compile_layers
from gakd.types import Batch

CONFIG = Qwen3Config(
    vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, max_position_embeddings=256,
)  # fmt: skip
SHAPES = [(2, 33), (3, 64), (1, 17), (4, 48)]  # sequences, positions


def batch_of(device, sequences, positions) -> Batch:
    ids_BT = torch.randint(640, (sequences, positions), generator=torch.Generator().manual_seed(positions))
    return Batch.of(ids_BT, torch.ones_like(ids_BT), ids_BT).to(device)


def hidden_and_gradients(model, batch, mixed) -> torch.Tensor:
    """All in one vector, in float64."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
        hidden_NH = hidden_rows(model, batch)
    hidden_NH.float().square().sum().backward()
    gradients = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    return torch.cat([part.detach().double() for part in (hidden_NH.flatten(), *gradients)])


def test_compiled_layers_are_as_near_the_exact_ones_as_eager_layers_are(device):
    torch._dynamo.reset()
    compiling._compiled.cache_clear()
    counters.clear()
    torch.manual_seed(0)
    cuda = device.type == "cuda"
    model = Qwen3ForCausalLM(CONFIG).to(device).train()
    batches = [batch_of(device, *shape) for shape in SHAPES]
    exact = [hidden_and_gradients(model, batch, False) for batch in batches]
    eager = [hidden_and_gradients(model, batch, cuda) for batch in batches]
    compile_layers(model, "inductor" if cuda else "eager")
    for batch, expected, near in zip(batches, exact, eager, strict=True):
        found = hidden_and_gradients(model, batch, cuda)
        assert (found - expected).norm() <= 1.5 * (near - expected).norm() + 1e-5 * expected.norm()
    assert 0 < counters["stats"]["unique_graphs"] <= 3
