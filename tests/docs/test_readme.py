"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import gakd
from gakd import Counts
from tests import tiny
from tests.test_distiller import VOCAB, batch_of, sequences

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_objective_composes_and_trains_every_network():
    compose, hellinger = re.findall(r"```python\n(.*?)```", README, re.S)
    torch.manual_seed(0)
    batch = batch_of(sequences())
    names = {
        "student": tiny.model(VOCAB, seed=1),
        "teacher_model": tiny.model(VOCAB, width=48, tied=False, seed=2),
        "vocab_size": VOCAB,
        "batches": [batch] * 4,
    }
    start = {name: weight.clone() for name, weight in names["student"].named_parameters()}
    # As it stands there, but that its game begins with the second step.
    assert "start=200" in compose
    compose = compose.replace("start=200", "start=1").replace(
        "teacher, distiller", "begun = {k: w.clone() for k, w in adversarial.named_parameters()}\nteacher, distiller"
    )
    exec(compose, names)
    for module, before in ((names["student"], start), (names["adversarial"], names["begun"])):
        moved = [not torch.equal(weight, before[name]) for name, weight in module.named_parameters()]
        # All but the last two biases: they shift both scores alike, which a relativistic game cannot feel.
        assert sum(moved) >= len(moved) - 2
        assert all(torch.isfinite(weight).all() for weight in module.parameters())
    assert not torch.equal(names["adversarial"].readout.weight, names["begun"]["readout.weight"])

    own = {"Divergence": gakd.Divergence}
    exec(hellinger, own)
    output = gakd.Distiller(names["student"], own["Hellinger"]())(
        batch, names["teacher_output"], own["Hellinger"]().coefficients(0, Counts.over(batch))
    )
    assert 0 < output.token_losses["hellinger"].mean() < 1
