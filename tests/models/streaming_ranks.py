"""One of two processes that cut a teacher over them, for tests/models/test_streaming.py: its parts and its memory, to a file."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from gakd.models import load_model
from gakd.models.sharding import own_part
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


def main(folder: str, output: str, rank: int, device: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{output}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    before, peak = anonymous(), Peak()
    peak.start()
    teacher = LocalTeacher(load_model(folder, torch.float32, device=torch.device(device)))
    mark = teacher.mark() if rank == 0 else ""
    teacher.shard(mesh, torch.device("cpu"))
    peak.running = False
    peak.join()
    parts = {name: own_part(weight).clone() for name, weight in teacher.model.named_parameters()}
    found = {"peak": peak.bytes - before, "parts": sum(part.nbytes for part in parts.values()), "mark": mark}
    heard = teacher(two_rows())
    logits_NV = heard.head.shape.logits(heard.head.product(heard.hidden_NH))
    save_file({**parts, "hidden": heard.hidden_NH, "logits": logits_NV}, f"{output}/rank{rank}.safetensors")
    Path(f"{output}/rank{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
