"""Prints as JSON what one step of each kind of recipe does on the fake device, and what the recorder sees of `slips.py`."""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from typing import Any

from tests.fake_cuda import guard

guard.load()

from tests.fake_cuda import patches

patches.install()

from tests.fake_cuda.recorder import Recorder
from tests.fake_cuda.settings import Setting
from tests.fake_cuda.slips import SLIPS, recorded
from tests.fake_cuda.step import run_step

_SHORT = {"layers": 1, "lengths": ((512, 307),) * 8}
KINDS = {
    "gakd": Setting(**_SHORT),
    "gakd_lora": Setting(**_SHORT, lora_rank=16),
    "released": Setting("ablations/released", **_SHORT, flags={"adversarial_start": 0}),
    "policy_gradient": Setting("baselines/minillm", **_SHORT, flags={"updates": 1}),
    "uld": Setting("baselines/uld", student="SmolLM2-360M", **_SHORT),
}  # fmt: skip


def summary(recorder: Recorder) -> dict[str, Any]:
    """What is no kernel, and the products, each with how often it happened."""
    happened = Counter(
        (event.kind, event.part, event.micro is not None, event.what, event.where)
        for event in recorder.events
        if event.kernel is None
    )
    products = Counter(
        (event.kernel.precision, event.kernel.flops, event.kernel.shapes, event.part, event.where)
        for event in recorder.events
        if event.kernel is not None and event.kernel.flops
    )
    kernels = sum(event.kernel.launches for event in recorder.events if event.kernel is not None)
    return {
        "happened": [[*key, count] for key, count in happened.items()],
        "products": [[*key, count] for key, count in products.items()],
        "kernels": kernels,
    }


def main() -> None:
    found: dict[str, Any] = {"slips": {}, "kinds": {}}
    for slip in SLIPS:
        found["slips"][slip.__name__] = summary(recorded(slip))
    for kind, setting in KINDS.items():
        try:
            found["kinds"][kind] = summary(run_step(setting).recorder)
        except Exception:  # one kind that breaks must not hide the others
            found["kinds"][kind] = {"error": traceback.format_exc()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
