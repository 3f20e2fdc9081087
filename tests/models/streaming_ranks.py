"""One of two processes that cut a model over them, for tests/models/test_streaming.py: its parts and its memory, to a file."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gakd.models import ModelConfig, load_model, load_student
from gakd.models.fingerprints import untrained_mark
from gakd.models.heads import hidden_rows
from gakd.models.sharding import own_part, shard_model
from gakd.teachers.local import LocalTeacher
from tests.architecture_table import two_rows


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


class Peak(threading.Thread):
    """The most anonymous memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.running = 0, True

    def run(self) -> None:
        while self.running:
            self.bytes = max(self.bytes, anonymous())
            time.sleep(0.001)


class Cut(NamedTuple):
    """A model cut over the ranks, the mark it had whole, and what it says of two rows."""

    model: nn.Module
    mark: str
    ask: Callable[[], dict[str, torch.Tensor]]


def cut_teacher(folder: str, mesh: DeviceMesh, device: str) -> Cut:
    teacher = LocalTeacher(load_model(folder, torch.float32, device=torch.device(device)))
    mark = teacher.mark() if distributed.get_rank() == 0 else ""
    teacher.shard(mesh, torch.device("cpu"))

    def ask() -> dict[str, torch.Tensor]:
        heard = teacher(two_rows())
        logits_NV = heard.head.shape.logits(heard.head.product(heard.hidden_NH))
        return {"hidden": heard.hidden_NH, "logits": logits_NV}

    return Cut(teacher.model, mark, ask)


def cut_student(folder: str, mesh: DeviceMesh, device: str) -> Cut:
    """It says its part of each weight's gradient, too."""
    student = load_student(ModelConfig(folder, lora_rank=0), sharded=device == "meta")
    mark = untrained_mark(student) if distributed.get_rank() == 0 else ""
    shard_model(student, mesh)

    def ask() -> dict[str, torch.Tensor]:
        hidden_NH = hidden_rows(student, two_rows())
        hidden_NH.square().sum().backward()
        gradients = {name: weight.grad for name, weight in student.named_parameters() if weight.grad is not None}
        return {"hidden": hidden_NH.detach()} | {
            f"gradient of {name}": own_part(own) for name, own in gradients.items()
        }

    return Cut(student, mark, ask)


def one_rank(rank: int, role: str, folder: str, output: str, device: str) -> None:
    """The figures of one process to `rank{rank}.json`, its parts of weights, and more, to `rank{rank}.safetensors`."""
    os.environ["RANK"] = str(rank)  # as a launcher would
    distributed.init_process_group("gloo", init_method=f"file://{output}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    before, peak = anonymous(), Peak()
    peak.start()
    cut = {"teacher": cut_teacher, "student": cut_student}[role](folder, mesh, device)
    peak.running = False
    peak.join()
    parts = {name: own_part(weight).clone() for name, weight in cut.model.named_parameters()}
    found = {"peak": peak.bytes - before, "parts": sum(part.nbytes for part in parts.values()), "mark": cut.mark}
    said = {name: tensor.clone() for name, tensor in cut.ask().items()}
    save_file(parts | said, f"{output}/rank{rank}.safetensors")
    Path(f"{output}/rank{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), *sys.argv[2:])
