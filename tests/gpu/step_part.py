"""One whole optimizer step of recipes/gakd.py's objects: Qwen3-0.6B from Qwen3-8B with random weights, no files, no data.

Three sorts of decoder layers: as transformers writes them, compiled one by one (`--compile`), and with Liger's kernels where
they are installed. Operations are those that `gakd plan` counts, so recomputed and fused ones make no difference.
"""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any, Literal, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen3Config

import gakd
from gakd.models.compiling import compile_layers
from gakd.models.heads import head_of
from gakd.objective import Counts
from gakd.planning import PlanConfig, plan
from gakd.planning.known_models import known_config
from tests.gpu.machine import bf16_peak
from tests.gpu.meters import median_ms
from tests.gpu.setting import Setting, first_line

Layers = Literal["eager", "compiled", "Liger"]
SUPERVISED = 0.6
LOSS_TOLERANCE = 1e-2  # of the first step's, between sorts of layers in bf16
LEAST_SECONDS = {
    "eager": 30,
    "compiled": 90,
    "Liger": 40,
}  # of one sort of layers on a card: models built, compiled, run
TINY = Qwen3Config(
    vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, tie_word_embeddings=True, max_position_embeddings=64,
)  # fmt: skip


def config_of(name: str) -> PreTrainedConfig:
    config = TINY if name == "tiny" else known_config(name)
    assert config is not None, f"{name} is not in gakd.planning's list"
    return config


def run(setting: Setting) -> None:
    teacher, planned = fitting(setting)
    first_loss: float | None = None
    for layers in ("eager", "compiled", "Liger"):
        title: dict[str, Any] = {"layers": layers, "student": setting.sizes.student, "teacher": teacher}
        title["peer"] = layers == "Liger"
        if layers == "Liger" and importlib.util.find_spec("liger_kernel") is None:
            setting.report(title | {"left_out": "not installed"})
            continue
        if layers == "Liger" and setting.dry:
            setting.report(title | {"left_out": "needs CUDA"})
            continue
        if setting.deadline.left < (0 if setting.dry else LEAST_SECONDS[layers]):
            setting.report(title | {"left_out": "no time left"})
            continue
        try:
            row = title | measure(setting, teacher, layers, planned)
            first_loss = row["first_loss"] if first_loss is None else first_loss
            if abs(row["first_loss"] / first_loss - 1) > LOSS_TOLERANCE:
                row["error"] = f"another loss than the eager layers' {first_loss:.4f}"
        except torch.OutOfMemoryError:
            row = title | {"error": "out of memory"}
        except Exception as error:  # the other sorts go on
            row = title | {"error": first_line(error)}
        setting.meter.forget()
        setting.report(row)


def fitting(setting: Setting) -> tuple[str, float]:
    """The first teacher that the plan finds room for, and operations of a token with it."""
    sizes, names = setting.sizes, setting.sizes.teachers
    memory = torch.cuda.get_device_properties(setting.device).total_memory if setting.device.type == "cuda" else 80e9
    for teacher in names:
        with tempfile.TemporaryDirectory() as student_folder, tempfile.TemporaryDirectory() as teacher_folder:
            config_of(sizes.student).save_pretrained(student_folder)
            config_of(teacher).save_pretrained(teacher_folder)
            found = plan(
                PlanConfig(
                    student=student_folder, teacher=teacher_folder, lora_rank=0, micro_batch_size=sizes.sequences,
                    length=sizes.length, response_share=SUPERVISED, device_memory=0.9 * memory / 1e9,
                )
            )  # fmt: skip
        if found.fits or teacher == names[-1]:
            return teacher, found.flops.total
    raise AssertionError("a size names at least one teacher")


def measure(setting: Setting, teacher: str, layers: Layers, flops_per_token: float) -> dict[str, Any]:
    sizes = setting.sizes
    step = build(setting, teacher, layers)
    first = float(step.run())  # with what is compiled, and the optimizers' states
    step.run()
    peak = setting.meter.peak_bytes(step.run)
    ms = median_ms(setting.meter, step.run, max(sizes.rounds // 2, 1))
    tokens = sizes.micro_batches * sizes.sequences * sizes.length
    card = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else ""
    most, flops = bf16_peak(card), flops_per_token * tokens / ms * 1e3
    last = float(step.run())
    if not last < first:
        raise ArithmeticError(f"the loss of one batch did not fall in six steps on it: {first:.4f} to {last:.4f}")
    return {
        "ms": ms, "ms_micro_batch": ms / sizes.micro_batches, "tokens_per_second": 1e3 * tokens / ms,
        "tflops": flops / 1e12, "mfu": None if most is None else flops / most,
        "peak_bytes": None if peak is None else peak + step.held_bytes(), "first_loss": first, "last_loss": last,
    }  # fmt: skip


class Step(NamedTuple):
    """The loop of recipes/gakd.py, without its data, logs and checkpoints."""

    fabric: Fabric
    distiller: Any
    teacher: gakd.LocalTeacher
    adversarial: gakd.Adversarial
    optimizers: tuple[Any, Any]
    batches: list[gakd.Batch]
    coefficients: Any

    def run(self) -> Tensor:
        total = torch.zeros((), device=self.fabric.device)
        for index, batch in enumerate(self.batches):
            teacher_output = self.teacher(batch)
            with self.fabric.no_backward_sync(self.distiller, enabled=index < len(self.batches) - 1):
                output = self.distiller(batch, teacher_output, self.coefficients)
                game = self.adversarial(output, teacher_output, batch, self.coefficients)
                self.fabric.backward(output.loss + game.loss)
            total += output.loss.detach()
        self.adversarial.flush()
        student, discriminator = self.optimizers
        self.fabric.clip_gradients(self.distiller, student, max_norm=1.0, error_if_nonfinite=False)
        for optimizer in (student, discriminator):
            optimizer.step()
            optimizer.zero_grad()
        return total

    def held_bytes(self) -> int:
        """What lives before a step: weights and moments."""
        device = self.fabric.device
        return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def build(setting: Setting, teacher: str, layers: Layers) -> Step:
    device, cuda = setting.device, setting.device.type == "cuda"
    fabric = Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if cuda else "32-true")
    student_model = random_model(config_of(setting.sizes.student), device, torch.float32, seed=1)
    teacher_model = random_model(config_of(teacher), device, torch.bfloat16 if cuda else torch.float32, seed=2)
    for model in (student_model, teacher_model):
        if layers == "compiled":
            compile_layers(model, "inductor" if cuda else "eager")
        elif layers == "Liger":
            put_liger_in(model)
    local = gakd.LocalTeacher(teacher_model)
    adversarial = gakd.Adversarial(
        gakd.TransformerDiscriminator(setting.sizes.readout, setting.sizes.readout),
        gakd.RelativisticGAN(10.0, 10.0),
        readout=gakd.logit_readout(head_of(student_model), local.head, setting.sizes.readout),
    ).to(device)
    objective = 0.5 * gakd.CrossEntropy() + 0.5 * gakd.ReverseKL() + 0.1 * adversarial
    distiller = gakd.Distiller(student_model, objective).train()
    batches = random_batches(setting)
    counts = Counts(sum(len(batch.rows_N) for batch in batches), sum(len(batch.lengths) for batch in batches))
    wrapped = fabric.setup_module(distiller)
    own = fabric.setup_optimizers(torch.optim.AdamW(distiller.parameters(), lr=1e-5))
    of_game = torch.optim.AdamW(adversarial.parameters(), lr=2e-4, betas=(0.0, 0.99))
    return Step(fabric, wrapped, local, adversarial, (own, of_game), batches, objective.coefficients(1, counts))


def random_model(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def random_batches(setting: Setting) -> list[gakd.Batch]:
    sizes, generator = setting.sizes, torch.Generator().manual_seed(3)
    vocabulary, batches = config_of(sizes.student).vocab_size, []
    for _ in range(sizes.micro_batches):
        shape = sizes.sequences, sizes.length
        ids_BT = torch.randint(vocabulary, shape, generator=generator)
        labels_BT = torch.randint(vocabulary, shape, generator=generator)
        labels_BT[:, : round((1 - SUPERVISED) * sizes.length)] = gakd.types.IGNORE_INDEX
        batches.append(gakd.Batch.of(ids_BT, torch.ones_like(ids_BT), labels_BT).to(setting.device))
    return batches


def put_liger_in(model: nn.Module) -> None:
    """Liger's normalisation, rotation and SwiGLU; the losses stay gakd's."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3

    apply_liger_kernel_to_qwen3(fused_linear_cross_entropy=False, model=model)
