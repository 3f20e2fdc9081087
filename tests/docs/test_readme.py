"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import gakd
from gakd.objective import Counts
from tests import tiny
from tests.test_distiller import VOCAB, batch_of, sequences

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_objective_composes_and_gives_every_network_a_gradient():
    compose, hellinger = re.findall(r"```python\n(.*?)```", README, re.S)
    batch = batch_of(sequences())
    names = {
        "student": tiny.model(VOCAB, seed=1),
        "teacher_model": tiny.model(VOCAB, width=48, tied=False, seed=2),
        "vocab_size": VOCAB,
        "batch": batch,
        "step": 300,
        "counts": Counts(int(batch.mask.sum()), len(batch.labels)),
    }
    exec(compose, names)
    names["adversarial"].flush()
    for module in (names["student"], names["adversarial"]):
        gradients = [parameter.grad for parameter in module.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        # All but the last two biases: they shift both scores alike, which a relativistic game cannot feel.
        assert sum(bool(gradient.abs().sum() > 1e-9) for gradient in gradients) >= len(gradients) - 2

    own = {"Divergence": gakd.Divergence}
    exec(hellinger, own)
    output = gakd.Distiller(names["student"], 1.0 * own["Hellinger"]())(
        batch, names["teacher_output"], (1.0 * own["Hellinger"]()).coefficients(0, names["counts"])
    )
    assert 0 < output.token_losses["hellinger"].mean() < 1
