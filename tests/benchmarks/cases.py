"""What is measured: every case as plain data. The parent imports neither torch nor a peer, so that it weighs nothing.

A case has a reference (the floor, the direct way, the release), ours, and further implementations, each of which is
measured in turns with those two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

PLAIN = ("ours, head frozen", "unfused")
TORCHTUNE = ("torchtune", "torchtune chunked")
TRL = ("TRL", "TRL chunked")
LIGER = ("Liger", "Liger compiled")

# Who implements what. A divergence that a peer lacks has an empty cell.
TOKEN_IMPLEMENTATIONS = {
    "cross_entropy": (*PLAIN, "torchtune chunked", "TRL chunked"),
    "forward_kl": (*PLAIN, *TORCHTUNE, *TRL, *LIGER),
    "reverse_kl": (*PLAIN, *TORCHTUNE, *TRL, *LIGER),
    "jensen_shannon": (*PLAIN, *TRL, *LIGER),
    "symmetric_kl": (*PLAIN, *TORCHTUNE),
    "skew_forward_kl": PLAIN,
    "skew_reverse_kl": PLAIN,
    "adaptive_kl": PLAIN,
    "alpha_beta": PLAIN,
    "total_variation": PLAIN,
}
SIZES = {
    "V151936": {"rows": 256, "vocabulary": 151_936, "student_width": 1024, "teacher_width": 1024},
    "V32768": {"rows": 1024, "vocabulary": 32_768, "student_width": 256, "teacher_width": 512},
}
STEP = {
    "vocabulary": 32_768, "student_width": 256, "teacher_width": 512, "layers": 4, "batch": 4, "length": 256,
}  # fmt: skip
SAMPLING = {  # models of SmolLM2-135M's shape
    "vocabulary": 49_152, "width": 576, "mlp_width": 1536, "layers": 30, "heads": 9, "key_value_heads": 3,
    "prompts": 16, "shortest": 16, "longest": 64, "new_tokens": 64,
}  # fmt: skip
QUICK = {"rows": 32, "length": 16, "layers": 4, "prompts": 4, "shortest": 4, "longest": 16, "new_tokens": 8}


@dataclass(frozen=True)
class Case:
    family: str  # token, adversary, step, trainer or sampling
    name: str
    reference: str  # what times are divided by
    others: tuple[str, ...]  # implementations beside the reference and "ours"
    parameters: dict[str, Any] = field(hash=False)

    @property
    def title(self) -> str:
        return f"{self.family}/{self.name}"

    @property
    def implementations(self) -> tuple[str, ...]:
        return (self.reference, "ours", *self.others)

    def quick(self) -> Case:
        """The same on few rows: proves that it works, says nothing about time."""
        smaller = {name: min(QUICK.get(name, value), value) for name, value in self.parameters.items()}
        return Case(self.family, self.name, self.reference, self.others, smaller)


def all_cases() -> list[Case]:
    return [*_token_cases(), *_adversary_cases(), *_step_cases(), *_trainer_cases(), *_sampling_cases()]


def matching(patterns: tuple[str, ...]) -> list[Case]:
    """Cases whose title matches any shell pattern, or contains it."""
    cases = all_cases()
    if not patterns:
        return cases
    return [case for case in cases if any(fnmatch(case.title, p) or p in case.title for p in patterns)]


def _token_cases() -> list[Case]:
    cases = []
    for size, shape in SIZES.items():
        for divergence, others in TOKEN_IMPLEMENTATIONS.items():
            name = divergence if divergence == "cross_entropy" else f"{divergence} + CE"
            parameters = shape | {"divergence": divergence, "cross_entropy": True, "supervised": 1.0}
            cases.append(Case("token", f"{size}/{name}", "floor", others, parameters))
        for divergence in ("reverse_kl", "jensen_shannon"):
            parameters = shape | {"divergence": divergence, "cross_entropy": False, "supervised": 1.0}
            others = TOKEN_IMPLEMENTATIONS[divergence]
            cases.append(Case("token", f"{size}/{divergence} alone", "floor", others, parameters))
    big = SIZES["V151936"] | {"divergence": "reverse_kl", "cross_entropy": True, "supervised": 0.4}
    cases.append(
        Case("token", "V151936/reverse_kl + CE, 40% supervised", "floor", TOKEN_IMPLEMENTATIONS["reverse_kl"], big)
    )
    return cases


def _adversary_cases() -> list[Case]:
    shape = {"batch": 4, "vocabulary": 151_936, "width": 1024, "readout_width": 256}
    return [
        Case("adversary", f"T={length}, heads {heads}", "direct",
             ("ours, centred", "ours, with V") if heads == "frozen" else ("ours, centred",),
             shape | {"length": length, "frozen": heads == "frozen"})
        for heads in ("trained", "frozen") for length in (32, 128, 256)
    ]  # fmt: skip


def _step_cases() -> list[Case]:
    return [
        Case("step", f"{share:.0%} supervised", "release", ("ours, cached teacher",), STEP | {"supervised": share})
        for share in (1.0, 0.4)
    ]


def _trainer_cases() -> list[Case]:
    return [
        Case("trainer", divergence, "DistillationTrainer", (), STEP | {"supervised": 0.5, "divergence": divergence})
        for divergence in ("forward_kl", "jensen_shannon", "reverse_kl")
    ]


def _sampling_cases() -> list[Case]:
    return [
        Case("sampling", f"SmolLM2-135M/{sampler}", "one at a time", (), SAMPLING | {"sampler": sampler})
        for sampler in ("student", "teacher-mixed")
    ]
