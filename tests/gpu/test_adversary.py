"""The adversary on the card, its maps' products in TF32, against float64 on the CPU: scores, and both players' gradients."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from gakd import (
    Adversarial,
    CenteredLogitReadout,
    ExpectedEmbedding,
    FrozenHeadsReadout,
    Head,
    LogitReadout,
    LogProbReadout,
    MLPDiscriminator,
    RelativisticGAN,
    SoftCappedLogitReadout,
    TeacherOutput,
)
from gakd.objective import Coefficients
from gakd.types import IGNORE_INDEX, Batch, StudentOutput, StudentRows
from tests.gpu.oracle import direction_lost

LENGTHS, READ = (9, 12), 16  # supervised tokens of each sequence; width of the map
FACTORED, DIRECT = float("inf"), 0.0  # rows of a step so many, or so few, that one way is taken for sure
LINEAR = [LogitReadout, CenteredLogitReadout]
OTHERS = [SoftCappedLogitReadout, LogProbReadout, ExpectedEmbedding, "frozen heads"]


def sizes(device: torch.device) -> tuple[int, int, int]:
    """Vocabulary and both models' widths."""
    return (96, 12, 20) if device.type == "cpu" else (32_768, 256, 512)


def play(readout_class, device: torch.device, dtype: torch.dtype, way: float, wide: torch.device) -> dict[str, Tensor]:
    """One micro-batch on `device`, of the same numbers whatever the device: gradients and losses by name. `wide` gives sizes."""
    vocabulary, student_width, teacher_width = sizes(wide)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    hidden_NH, weight_VH = draw(sum(LENGTHS), student_width), draw(vocabulary, student_width) / student_width**0.5
    teacher_NH, teacher_VH = draw(sum(LENGTHS), teacher_width), draw(vocabulary, teacher_width) / teacher_width**0.5
    frozen = readout_class == "frozen heads"
    student, head = Head(weight_VH.requires_grad_(not frozen)), Head(teacher_VH)
    labels_BT = torch.full((len(LENGTHS), max(LENGTHS)), IGNORE_INDEX)
    for row, length in enumerate(LENGTHS):
        labels_BT[row, :length] = 0
    batch = Batch.of(torch.zeros_like(labels_BT), torch.ones_like(labels_BT), labels_BT).to(device)

    torch.manual_seed(1)
    # In fp32 whatever comes, so that both have the same map, and a basis of the same heads.
    readout = LogitReadout(vocabulary, READ) if frozen else readout_class(vocabulary, READ)
    if frozen:
        readout = FrozenHeadsReadout(_fp32(student), _fp32(head), readout)
    adversarial = Adversarial(MLPDiscriminator(READ, width=8), RelativisticGAN(3.0, 5.0), readout).to(device, dtype)
    coefficients = Coefficients({"adversarial": 0.5}, 0.5, way)
    hidden_NH.requires_grad_()
    cuda = device.type == "cuda"
    with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
        known = [own.logsumexp(-1).detach() for own in (student.logits(hidden_NH), head.logits(teacher_NH))]
        rows = StudentRows(readout.live(hidden_NH, student, way, known[0]), hidden_NH.detach(), *known)
        output = StudentOutput(torch.zeros((), device=device), {}, rows)
        game = adversarial(output, TeacherOutput(teacher_NH, head), batch, coefficients)
    game.loss.backward()
    adversarial.flush()
    found = {f"loss.{name}": value for name, value in game.losses.items()}
    found |= {f"gradient.{name}": one.grad for name, one in adversarial.named_parameters() if one.grad is not None}
    found["gradient of the student"] = hidden_NH.grad
    return {name: value.detach().cpu() for name, value in found.items()}


def _fp32(head: Head) -> Head:
    return head._replace(weight=head.weight.detach().float().cpu())


@pytest.mark.parametrize(
    ("readout", "way"),
    [*((one, way) for one in LINEAR for way in (FACTORED, DIRECT)), *((one, FACTORED) for one in OTHERS)],
)
def test_both_players_gradients_are_float64s(readout, way, device):
    found = play(readout, device, torch.float32, way, device)
    expected = play(readout, torch.device("cpu"), torch.float64, way, device)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("loss"):
            torch.testing.assert_close(
                found[name].double(), value, rtol=1e-2, atol=1e-2, msg=lambda text, name=name: f"{name}: {text}"
            )
        elif value.norm() > 1e-9:
            assert direction_lost(found[name], value) < 1e-3, name
            assert found[name].double().norm().item() == pytest.approx(value.norm().item(), rel=2e-2), name
