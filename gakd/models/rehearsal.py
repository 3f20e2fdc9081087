"""The export of a student, rehearsed before it is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gakd.files import cache_dir
from gakd.models.errors import ModelError
from gakd.models.export import save_model
from gakd.models.lora import base_of
from gakd.models.precision import single_copy
from gakd.models.read_back import prove_folder, text_logits

_ADAPTED = 0.05  # standard deviation of the adapters' second matrices, which start at 0, in the rehearsal


def prove_student(student: nn.Module) -> None:
    """ModelError where what is exported of a student would not be the student: a weight lost, a merge that changes logits.

    The student is written to a scratch folder in the cache, merged in fp32 if it has LoRA (with adapters that do something),
    loaded again and compared. It takes the room of one export on disk, for the moment.
    """
    with _adapters_set(student), tempfile.TemporaryDirectory(prefix="rehearsal-", dir=cache_dir()) as scratch:
        written = single_copy(student) if base_of(student) is not student else student
        expected_NV = text_logits(written)
        try:
            merged = _merged(written)
            own: Any = merged.generation_config
            save_model(merged, Path(scratch), getattr(own, "eos_token_id", None), getattr(own, "pad_token_id", None))
            prove_folder(type(merged), merged.dtype, expected_NV, Path(scratch))
        except ModelError as error:
            remedy = (
                "; train all weights with --lora-rank 0, or other layers by --lora-targets"
                if base_of(student) is not student
                else ""
            )
            raise ModelError(f"{error}{remedy}") from error


def _merged(student: Any) -> Any:
    if base_of(student) is student:
        return student
    try:
        return student.merge_and_unload()
    except Exception as error:  # whatever peft meets in a layer that is linear by its class alone
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(
            f"the LoRA of {type(base_of(student)).__name__} cannot be merged into its weights ({reason})"
        ) from error


@contextmanager
def _adapters_set(student: nn.Module) -> Iterator[None]:
    """LoRA's second matrices drawn, and zero again afterwards."""
    second = [parameter for name, parameter in base_of(student).named_parameters() if "lora_B" in name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in second:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * _ADAPTED)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in second:
                parameter.zero_()
