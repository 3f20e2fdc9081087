"""What this machine has for gakd: versions, devices, space, and known incompatibilities with what to do about each."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

from gakd.data.config import DataConfig
from gakd.errors import InputError
from gakd.files import cache_dir
from gakd.machine import memory, version_of

EXTRAS = ("demo", "lora", "api", "torchtune", "bench", "docs")
FEATURES = ("demo", "lora", "api", "torchtune")  # extras whose versions matter to a run
_SHOWN = (
    "gakd", "torch", "transformers", "tokenizers", "safetensors", "lightning-fabric", "datasets", "huggingface_hub", "peft",
    "torchao", "torchtune", "triton", "openai",
)  # fmt: skip
_REASONS = {"torch": "older ones are not tested", "transformers": "older ones cannot be planned for"}
_BEGINNING_OF_BF16 = 8  # compute capability


@dataclass
class DoctorConfig:
    """What is looked at."""

    online: bool = False
    """Ask the Hugging Face hub whether it can be reached; without this nothing leaves the machine."""
    dataset: str | None = None
    """Show too what this dataset becomes with the tokenizer of --student, as `gakd data` does."""
    student: str | None = None
    """Whose template sets the dataset's text."""


class Devices(NamedTuple):
    """The accelerators as torch sees them."""

    cuda: str | None  # the version that torch was built for
    names: list[str]
    gigabytes: list[float]
    capabilities: list[int]  # major compute capability
    driver: bool  # whether NVIDIA's is loaded on this machine
    compiler: bool  # whether there is a C compiler


def main(config: DoctorConfig) -> None:
    """Print tables and problems; exit status 1 where something is known not to work."""
    versions, devices = installed(), seen_devices()
    if (config.dataset is None) != (config.student is None):
        raise InputError("a dataset is shown as a student's template sets it: give both --dataset and --student")
    found = problems(versions, requirements()) + device_problems(devices, versions)
    console = Console(width=None if Console().is_terminal else 120)
    for title, rows in (
        ("Environment", environment_rows(config.online)),
        ("Devices", device_rows(devices)),
        ("Packages", [(name, versions.get(name) or "not installed") for name in _SHOWN]),
        ("Extras", extra_rows()),
    ):
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(name, value)
        console.print(table, markup=False)
    if config.dataset is not None and config.student is not None:
        from gakd.cli.data import DataPreviewConfig
        from gakd.cli.data import main as show_data

        show_data(DataPreviewConfig(config.student, examples=1, data=DataConfig(config.dataset)))
    for problem in found:
        console.print(f"problem: {problem}", markup=False, highlight=False, soft_wrap=True)
    if found:
        sys.exit(1)
    console.print("No known incompatibility.")


def problems(versions: Mapping[str, str | None], required: Sequence[Requirement] = ()) -> list[str]:
    """Known incompatibilities among installed versions, one line each: what is wrong and what to do.

    `versions` are by name of the distribution, `python` among them; a missing or None one is not installed. `required` are
    gakd's own: those without a marker must be there, the others (of extras) must fit where they are.
    """
    found = []
    if Version(versions.get("python") or "3.11") < Version("3.11"):
        found.append(f"Python {versions['python']} is too old: gakd needs 3.11 or newer")
    for requirement in required:
        name, version = requirement.name, versions.get(requirement.name)
        if version is None and requirement.marker is None:
            found.append(f"{name} is not installed: pip install '{name}{requirement.specifier}'")
        elif (
            version is not None and name != "torchao" and not requirement.specifier.contains(version, prereleases=True)
        ):
            reason = f" ({_REASONS[name]})" if name in _REASONS else ""
            wanted = f"{name}{requirement.specifier}"
            found.append(f"{name} {version} is not {requirement.specifier}{reason}: pip install '{wanted}'")
    return found + _torchao_problems(versions)


def _torchao_problems(versions: Mapping[str, str | None]) -> list[str]:
    peft, torchao, torchtune = (versions.get(name) for name in ("peft", "torchao", "torchtune"))
    found = []
    if peft and torchao and Version(peft) >= Version("0.19") and Version(torchao) < Version("0.16"):
        found.append(
            f"peft {peft} refuses torchao {torchao}, so LoRA fails: pip install 'peft>=0.18,<0.19', or pip uninstall torchao, "
            f"which the extra torchtune alone needs"
        )
    if torchtune and not (torchao and Version("0.13") <= Version(torchao) < Version("0.16")):
        found.append(
            f"torchtune {torchtune} cannot be imported with torchao {torchao or 'missing'}: pip install 'torchao>=0.13,<0.16', "
            f"or pip uninstall torchtune"
        )
    return found


def device_problems(devices: Devices, versions: Mapping[str, str | None]) -> list[str]:
    """What keeps the GPUs of a machine from being used as they could."""
    found = []
    if devices.driver and devices.cuda is None:
        found.append(
            f"this machine has NVIDIA's driver, torch {versions.get('torch')} is built without CUDA: install a CUDA build"
        )
    elif devices.driver and not devices.names:
        found.append(
            f"torch is built for CUDA {devices.cuda} and sees no GPU: is the driver older, or CUDA_VISIBLE_DEVICES empty?"
        )
    if devices.names and devices.cuda is not None and not (versions.get("triton") and devices.compiler):
        missing = "triton" if not versions.get("triton") else "a C compiler"
        found.append(
            f"{missing} is missing, which --kernel auto compiles with on a GPU: install it, or run with --kernel eager"
        )
    old = [name for name, major in zip(devices.names, devices.capabilities, strict=True) if major < _BEGINNING_OF_BF16]
    if old:
        found.append(
            f"{old[0]} has no bfloat16 arithmetic, which --precision auto takes on a GPU: run with --precision 32-true"
        )
    return found


def requirements() -> list[Requirement]:
    """What gakd itself asks for, and its extras that matter to a run; nothing where it is not installed as a package."""
    try:
        found = [Requirement(text) for text in metadata.requires("gakd") or []]
    except metadata.PackageNotFoundError:
        return []
    return [
        one for one in found if one.marker is None or any(one.marker.evaluate({"extra": name}) for name in FEATURES)
    ]


def installed() -> dict[str, str | None]:
    """Versions of what is shown and of what gakd asks for."""
    names = {*_SHOWN, *(requirement.name for requirement in requirements())}
    return {"python": platform.python_version()} | {name: version_of(name) for name in names}


def seen_devices() -> Devices:
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Devices(
        torch.version.cuda,
        [device.name for device in found],
        [device.total_memory / 1e9 for device in found],
        [device.major for device in found],
        Path("/proc/driver/nvidia/version").exists(),
        any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))),
    )


def device_rows(devices: Devices) -> list[tuple[str, str]]:
    rows = [("torch is built for", f"CUDA {devices.cuda}" if devices.cuda else "CPU alone")]
    for index, (name, size, major) in enumerate(
        zip(devices.names, devices.gigabytes, devices.capabilities, strict=True)
    ):
        rows.append(
            (f"GPU {index}", f"{name}, {size:.0f} GB, bfloat16: {'yes' if major >= _BEGINNING_OF_BF16 else 'no'}")
        )
    return rows if devices.names else [*rows, ("GPU", "none: recipes run on the CPU, in float32")]


def environment_rows(online: bool) -> list[tuple[str, str]]:
    from huggingface_hub import constants

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("Python", f"{platform.python_version()} at {sys.executable}"),
        ("platform", platform.platform()),
        ("CPU cores", f"{cores} for this process"),
        ("memory", f"{memory() / 1e9:.1f} GB"),
        ("free disk, here", _free(Path.cwd())),
        ("free disk, gakd's cache", _free(cache_dir())),
        ("free disk, models", _free(Path(constants.HF_HUB_CACHE))),
        ("hub", hub_state(constants.ENDPOINT, constants.HF_HUB_OFFLINE, online)),
    ]


def extra_rows() -> list[tuple[str, str]]:
    """Each extra: what it brings, or the line that installs it."""
    try:
        found = [Requirement(text) for text in metadata.requires("gakd") or []]
    except metadata.PackageNotFoundError:
        return [("all", "gakd is not installed as a package: pip install -e .")]
    rows = []
    for extra in EXTRAS:
        own = [one.name for one in found if one.marker is not None and one.marker.evaluate({"extra": extra})]
        missing = [name for name in own if version_of(name) is None]
        text = ", ".join(f"{name} {version_of(name)}" for name in own)
        rows.append((extra, text if not missing else f"{', '.join(missing)} missing: pip install 'gakd[{extra}]'"))
    return rows


def _free(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB in {folder}"


def hub_state(address: str, offline: bool, online: bool) -> str:
    """Whether the hub can be reached, as far as it is asked, and whether there is a token for it."""
    has_key = any(map(os.environ.get, ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")))
    key = "a token is set" if has_key else "no token in the environment"
    if offline:
        return f"offline (HF_HUB_OFFLINE); {key}"
    if not online:
        return f"not asked (--online asks); {key}"
    try:
        with urllib.request.urlopen(address, timeout=10):
            return f"{address} answers; {key}"
    except urllib.error.HTTPError as error:
        return f"{address} answers with {error.code}; {key}"
    except (OSError, ValueError) as error:
        return f"{address} cannot be reached ({error}): give folders, or set HF_HUB_OFFLINE=1; {key}"
