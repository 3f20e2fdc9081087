"""A whole step of plain distillation, the same models and tokens: TRL's `DistillationTrainer` against ours.

Both get the responses as they are (TRL's trainer always lets the student write them: its `_generate` is replaced by what gives
them back), one micro-batch, one loss, fp32, temperature 1, no dropout, no clipping, no checkpointing, no logging, the same AdamW.

- TRL: `DistillationTrainer.training_step`, and the optimizer. Where Triton runs, its kernels; elsewhere the torch fallback of its
  `ChunkedDivergenceFunction`, over all positions of the responses. It recomputes logits in the backward, pads and masks the
  batch in each step, and measures the student's entropy.
- ours: the loop of recipes/baselines/reverse_kl.py without Fabric, from a batch that is collated already.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.step_cases import WARM_UPS
from tests.benchmarks.work import Work, working_dtype

BETA = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}
LEARNING_RATE = 1e-4


def build(parameters: dict[str, Any], implementation: str, device: torch.device) -> Work:
    from tests import tiny

    student, teacher = (
        tiny.model(parameters["vocabulary"], parameters[f"{who}_width"], parameters["layers"], seed=seed).to(
            device, working_dtype(device)
        )
        for seed, who in enumerate(("student", "teacher"))
    )
    teacher.requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    shape = parameters["batch"], parameters["length"]
    ids_BT = torch.randint(parameters["vocabulary"], shape, generator=generator)
    prompt = round((1 - parameters["supervised"]) * parameters["length"])
    if implementation == "DistillationTrainer":
        return _trl(student, teacher, ids_BT, prompt, parameters["divergence"])
    return _ours(student, teacher, ids_BT.to(device), prompt, parameters["divergence"])


def _work(student: nn.Module, loss_of_a_step: Any) -> Work:
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)

    def iterate() -> Tensor:
        loss = loss_of_a_step()
        optimizer.step()
        return loss

    leaves = list(student.parameters())
    return Work(iterate, leaves, student.get_output_embeddings().weight, WARM_UPS)


def _trl(student: nn.Module, teacher: nn.Module, ids_BT: Tensor, prompt: int, divergence: str) -> Work:
    import datasets
    from trl import DistillationConfig, DistillationTrainer

    from tests import tiny

    rows = [{"prompt": "given"} for _ in ids_BT]
    arguments = DistillationConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(rows), beta=BETA[divergence], temperature=1.0,
        gradient_checkpointing=False, bf16=False, use_cpu=ids_BT.device.type == "cpu" and not torch.cuda.is_available(),
        report_to=[], save_strategy="no", disable_tqdm=True, max_completion_length=ids_BT.shape[1] - prompt,
    )  # fmt: skip
    trainer = DistillationTrainer(
        student, teacher, arguments, datasets.Dataset.from_list(rows), processing_class=tiny.tokenizer()
    )
    prompts, responses = ids_BT[:, :prompt].tolist(), ids_BT[:, prompt:].tolist()
    trainer._generate = lambda _: (prompts, responses, None, None, None)
    trainer.current_gradient_accumulation_steps = 1  # `train` says so before its first step
    trainer.model.train()
    return _work(student, lambda: trainer.training_step(trainer.model, rows, None))


def _ours(student: nn.Module, teacher_model: nn.Module, ids_BT: Tensor, prompt: int, divergence: str) -> Work:
    import gakd
    from gakd.objective import Counts

    term = {"forward_kl": gakd.ForwardKL, "jensen_shannon": gakd.JensenShannon, "reverse_kl": gakd.ReverseKL}[
        divergence
    ]
    objective = 1.0 * term()
    distiller = gakd.Distiller(student, objective).train()
    labels_BT = torch.full_like(ids_BT, -100)
    labels_BT[:, prompt - 1 : -1] = ids_BT[:, prompt:]  # each position has its next token
    batch = gakd.Batch.of(ids_BT, torch.ones_like(ids_BT), labels_BT)
    coefficients = objective.coefficients(0, Counts(int(batch.mask.sum()), len(ids_BT)))
    teacher = gakd.LocalTeacher(teacher_model)

    def loss_of_a_step() -> Tensor:
        loss = distiller(batch, teacher(batch), coefficients).loss
        loss.backward()
        return loss.detach()

    return _work(student, loss_of_a_step)
