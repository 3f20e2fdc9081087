"""What a plan is asked and what it says: the flags, the parts of memory, the counts of operations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from gakd.flags import COUNT, POSITIVE, Bound
from gakd.models.config import ALL_LINEAR

if TYPE_CHECKING:
    from gakd.planning.footprint import Shape

GB = 10**9
OptimizerName = Literal["adamw", "adamw8bit", "muon", "adafactor", "sgd"]
BOUNDS = {
    "micro_batch_size": COUNT, "micro_batch_tokens": COUNT, "devices": COUNT, "num_nodes": COUNT,
    "discriminator_width": COUNT, "length": COUNT,
    "readout_width": Bound(at_least=1, at_most=2**20), "response_share": Bound(above=0, at_most=1),
    "lora_rank": Bound(at_least=0, at_most=2**16), "lora_dropout": Bound(at_least=0, below=1), "device_memory": POSITIVE,
    "examples": Bound(at_least=0), "text_examples": Bound(at_least=0), "max_new_tokens": COUNT, "evaluation_batch_size": COUNT,
}  # fmt: skip


@dataclass
class PlanConfig:
    """The flags of a run that decide about its memory, named and set as the recipes' are."""

    student: str = "Qwen3-0.6B"
    """The student: a name such as Qwen3-0.6B, a folder with config.json, or a hub id."""
    teacher: str | None = "Qwen3-8B"
    """The teacher, in the same way. None: the recipe has none."""
    teacher_cache: bool = False
    """The teacher's hidden states come from disk: its head is in memory, its layers are not."""
    student_layers: tuple[int, ...] = ()
    """Decoder layers of the student to keep: one number keeps that many; several are indices. None: all."""
    lora_rank: int = 16
    """Rank of the student's LoRA; 0 trains all weights."""
    lora_dropout: float = 0.1
    """Dropout of LoRA's inputs, whose masks are kept for the backward."""
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    """Linear layers with LoRA: all-linear (but the head), or names such as q_proj v_proj."""
    activation_checkpointing: bool = False
    """Keep only the student's layer inputs and recompute the rest in the backward."""
    optimizer: OptimizerName = "adamw"
    """The student's optimizer, which keeps one number or two for each weight that trains, or less."""
    micro_batch_size: int = 4
    """Sequences per forward on one device."""
    micro_batch_tokens: int | None = None
    """Positions per forward on one device, padding included; overrides --micro-batch-size: so many of --length as fit."""
    accumulate: bool = True
    """An optimizer step has several micro-batches on each device, so gradients lie in memory while the next one runs."""
    length: int = 512
    """Tokens of a sequence, prompt and response, those of the longest micro-batch."""
    response_share: float = 0.5
    """Share of those tokens that are supervised: the response."""
    discriminator: bool = True
    """The recipe plays against recipes/gakd.py's discriminator: a map of the logits and a Transformer of 2 layers behind it."""
    readout_width: int = 256
    """Width R of the discriminator's map."""
    discriminator_width: int = 256
    """Width of its Transformer, a multiple of 4."""
    devices: int = 1
    """Processes per node, one a device."""
    num_nodes: int = 1
    """Nodes."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto and ddp: each device holds both models whole; fsdp2: their weights are cut over all devices."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"] = "auto"
    """auto: bf16-mixed on a GPU, 32-true on a CPU."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Kind of device: on a GPU the teacher is bfloat16 and chunks of logits are larger."""
    device_memory: float = 80.0
    """Memory of one device in GB of 10^9 bytes. CUDA's own 0.6 is planned; what NCCL and fragmentation take of it is not."""
    examples: int = 256
    """Held-out examples of which a teacher's hidden states stay on the device, validation and test alike."""
    text_examples: int = 128
    """Test examples to which responses are generated; 0: an evaluation writes no text."""
    max_new_tokens: int = 256
    """Tokens after which such a response is cut."""
    evaluation_batch_size: int = 16
    """Sequences that are written at once."""
    on_own_text: bool = False
    """The recipe trains on text that the student writes: its copy in 16 bits for that stays for the whole run."""

    @property
    def sequences(self) -> int:
        """Of `length` tokens in a micro-batch: one at least, as in a run."""
        if self.micro_batch_tokens is None:
            return self.micro_batch_size
        return max(self.micro_batch_tokens // self.length, 1)


@dataclass(frozen=True)
class Parts:
    """Bytes on one device at one moment of a step."""

    runtime: int = 0  # of CUDA itself: context, kernels, workspaces of libraries
    weights: int = 0  # the student's; under fsdp2 its own part, and what is gathered
    gradients: int = 0
    optimizer: int = 0  # what it keeps, such as AdamW's two moments, and what its step needs besides
    activations: int = 0
    teacher: int = 0
    discriminator: int = 0  # its weights, gradients, moments and the game's activations
    fused_chunk: int = 0  # logits of both models, and the gradients of hidden states and head that the losses form
    held_out: int = 0  # the teacher's hidden states of held-out text
    writing: int = 0  # the copy of weights that writes, caches and buffers of the sequences

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token of a sequence, prompt and response alike."""

    forward: float
    backward: float
    recompute: float
    teacher: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute + self.teacher


@dataclass(frozen=True)
class Plan:
    config: PlanConfig
    student: Shape
    teacher: Shape | None
    phases: dict[str, Parts]  # moments of a step, in order, and the evaluation between steps
    flops: Flops
    host_memory: tuple[int, int]  # bytes in the first process and in any other, before each rank has read its parts

    @property
    def busiest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> int:
        return self.phases[self.busiest].total

    @property
    def fits(self) -> bool:
        return self.peak <= self.config.device_memory * GB
