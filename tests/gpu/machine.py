"""What this machine is: card, driver, versions, and the card's peak."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "lightning-fabric", "trl", "liger-kernel", "numpy")

# Dense bf16 products, TFLOP/s, as the makers publish them; the longer name of two that fit counts.
BF16_PEAKS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100": 989, "H100 PCIe": 756, "H100 NVL": 835, "H800": 989, "H20": 148,
    "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10": 125, "L40S": 362, "L40": 181, "L4": 121,
    "RTX 6000 Ada": 364, "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def bf16_peak(card: str) -> float | None:
    """FLOP/s of a card's bf16 products by its name; None for one that is not in the table."""
    words = f" {card.lower().replace('-', ' ')} "
    fitting = [name for name in BF16_PEAKS if f" {name.lower()} " in words]
    return BF16_PEAKS[max(fitting, key=len)] * 1e12 if fitting else None


def machine(device: torch.device) -> dict[str, Any]:
    """Names and versions, for the head of a report."""
    found: dict[str, Any] = {
        "card": platform.machine(), "memory": None, "capability": None, "bf16_peak": None, "driver": None,
        "cuda": torch.version.cuda, "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name, "memory": properties.total_memory, "bf16_peak": bf16_peak(properties.name),
            "capability": f"{properties.major}.{properties.minor}", "driver": _driver(),
        }  # fmt: skip
    return found


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return printed[0] if printed else None
