"""The likely mistakes and what a command says to each: `python -m tests.error_catalogue` writes docs/errors.md anew."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import io
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import BartConfig, BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from gakd import cli
from gakd.cli import parse
from gakd.run import Run
from tests import tiny
from tests.recipe_runs import arguments, make_material, module_of

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
HEAD = """# Errors

What a command says to the mistakes that are most likely: what was got, what was expected, what to do, in one line, before
anything is trained wherever it can be known. Exit status 2 is for what was asked, 1 for what came up in a run. A test makes
each mistake and compares what is printed with this page.

| mistake | flags | what it says |
| --- | --- | --- |
"""


class Mistake(NamedTuple):
    what: str
    flags: tuple[str, ...]
    recipe: str = "gakd"
    prepare: Callable[[pytest.MonkeyPatch], None] | None = None


def _without(package: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(sys.modules, package, None)


def _no_logger(patch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))


def _raises(error: Exception) -> Callable[[pytest.MonkeyPatch], None]:
    def fail(*_, **__):
        raise error

    def prepare(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("gakd.run.training.Run.backward", fail)

    return prepare


def _full_disk(patch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr("gakd.run.checkpoint.save_file", fail)


def _nan(patch: pytest.MonkeyPatch) -> None:
    backward = Run.backward

    def poisoned(run: Run, loss: torch.Tensor, losses: dict[str, torch.Tensor]) -> None:
        backward(run, loss * torch.nan, losses | {"reverse_kl": losses["reverse_kl"] / 0})

    patch.setattr(Run, "backward", poisoned)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has ...")
MISTAKES = (
    Mistake("a model's name misspelt", ("--student", "Qwen-3-0.6B-")),
    Mistake("no such folder", ("--student", "./qwen3")),
    Mistake("a folder without a model", ("--student", "DIR/empty")),
    Mistake("a model that brings its own code", ("--student", "DIR/custom")),
    Mistake("teacher and student of different tokenizers", ("--teacher", "DIR/other")),
    Mistake(
        "LoRA on layers that are not there",
        ("--student", "DIR/gpt2", "--student-layers", "1", "--lora-rank", "4", "--lora-targets", "q_proj"),
    ),
    Mistake("LoRA without peft", ("--lora-rank", "4"), prepare=_without("peft")),
    Mistake("more layers than there are", ("--student-layers", "9")),
    Mistake("no teacher", ("--teacher", "None")),
    Mistake("a folder that is no teacher cache", ("--teacher-cache", "DIR/empty")),
    Mistake("a number out of range", ("--micro-batch-size", "0")),
    Mistake("a dataset's name misspelt", ("--dataset", "doly")),
    Mistake("a file that is no JSON", ("--dataset", "DIR/json.jsonl")),
    Mistake("a row without a response", ("--dataset", "DIR/rows.jsonl")),
    Mistake("an empty file", ("--dataset", "DIR/empty.jsonl")),
    Mistake("no room for a response", ("--max-length", "64", "--max-prompt-length", "64")),
    Mistake("every prompt too long", ("--max-prompt-length", "3")),
    Mistake("less data than a batch", ("--batch-size", "1000")),
    Mistake("a folder that holds another run", ("--output-dir", "DIR/run")),
    Mistake("other settings at a resume", ("--output-dir", "DIR/run", "--resume", "--learning-rate", "1e-4")),
    Mistake("a file as a folder", ("--output-dir", "DIR/empty.jsonl")),
    Mistake("a flag misspelt in a file", ("--config", "DIR/flags.yaml")),
    Mistake("a password in a flag", ("--dataset", "https://me:secret@data.example/train.jsonl")),
    Mistake("a logger that is not installed", ("--log-to", "wandb"), prepare=_no_logger),
    Mistake("the best of no validation", ("--export", "best", "--evaluate-every", "0")),
    Mistake("a model whose head cannot be proven", ("--student", "DIR/bert", "--student-layers", "1")),
    Mistake("an encoder-decoder", ("--student", "DIR/bart")),
    Mistake("a tokenizer larger than the embeddings", ("--student", "DIR/narrow")),
    Mistake("weights that were not copied whole", ("--student", "DIR/cut")),
    Mistake("a configuration of other weights", ("--student", "DIR/wider")),
    Mistake("a model that asks for code of the hub", ("--student", "DIR/kernel")),
    Mistake("a template that does not end", ("--student", "DIR/endless", "--teacher", "DIR/endless")),
    Mistake("a damaged config.json at a resume", ("--output-dir", "DIR/damaged", "--resume")),
    Mistake("out of GPU memory", (), prepare=_raises(OUT_OF_MEMORY)),
    Mistake("a full disk", (), prepare=_full_disk),
    Mistake("a loss that is not finite", (), prepare=_nan),
)  # fmt: skip


def make_places(folder: Path) -> None:
    """A folder in which each of the mistakes can be made."""
    make_material(folder)
    (folder / "empty").mkdir()
    (folder / "empty.jsonl").write_text("")
    (folder / "json.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "outp\n')
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    (folder / "flags.yaml").write_text("learning_rat: 1e-4\n")
    words = tiny.tokenizer()
    tiny.save(folder / "custom", tiny.model(), words)
    config = json.loads((folder / "custom" / "config.json").read_text())
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "custom" / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": own}))
    (folder / "custom" / "code.py").write_text("raise SystemExit('run without being asked to')\n")
    other = tiny.tokenizer()
    other.add_tokens(["<more>"])
    tiny.save(folder / "other", tiny.model(len(other)), other)
    gpt2 = GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=1)
    tiny.save(folder / "gpt2", GPT2LMHeadModel(gpt2), words)
    small = {
        "vocab_size": 272,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    tiny.save(folder / "bert", BertLMHeadModel(BertConfig(**small, is_decoder=True)), words)
    BartConfig(vocab_size=272, d_model=32).save_pretrained(folder / "bart")
    words.save_pretrained(folder / "bart")
    tiny.save(folder / "narrow", tiny.model(vocab_size=258), words)
    for name in ("cut", "wider", "kernel", "endless"):
        tiny.save(folder / name, tiny.model(), words)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, changed in (("wider", {"intermediate_size": 96}), ("kernel", {"_attn_implementation": "someone/kernel"})):
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "endless" / "chat_template.jinja").write_text(loop)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    (folder / "damaged" / "metrics.csv").write_text("step\n")
    (folder / "run").mkdir()
    module = module_of("gakd")
    first = parse(module.PAPER, module.DEMO, None, _flags(MISTAKES[20], folder, "3e-3"))
    (folder / "run" / "config.json").write_text(json.dumps(dataclasses.asdict(first), default=str))
    (folder / "run" / "metrics.csv").write_text("step\n")


def _flags(mistake: Mistake, folder: Path, learning_rate: str | None = None) -> list[str]:
    own = [flag.replace("DIR", str(folder)) for flag in mistake.flags]
    flags = [*arguments(folder, folder / "output", "--steps", "1", recipe=mistake.recipe), *own]
    return flags if learning_rate is None else [*flags, "--learning-rate", learning_rate]


def said(mistake: Mistake, folder: Path) -> tuple[int, str]:
    """Exit status and the line of a command, with the folder as DIR."""
    module, printed, errors = module_of(mistake.recipe), io.StringIO(), io.StringIO()
    status = 0
    with contextlib.ExitStack() as quiet:
        patch = quiet.enter_context(pytest.MonkeyPatch.context())
        quiet.enter_context(contextlib.redirect_stdout(printed))
        quiet.enter_context(contextlib.redirect_stderr(errors))
        patch.chdir(folder)
        quiet.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        if mistake.prepare is not None:
            mistake.prepare(patch)
        try:
            cli.run(lambda flags: module.main(parse(module.PAPER, module.DEMO, None, flags)), _flags(mistake, folder))
        except SystemExit as stopped:
            status = int(stopped.code or 0)
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    line = lines[0] if len(lines) == 1 else f"not one line: {lines}"
    return status, re.sub(r"[^\s'(]*" + re.escape(folder.name), "DIR", line.removeprefix("error: "))


def row(mistake: Mistake, line: str) -> str:
    """Of the table in docs/errors.md."""
    flags = " ".join(mistake.flags)
    cell, shown = f"`{flags}`" if flags else "", line.replace("|", "\\|")
    return f"| {mistake.what} | {cell} | {shown} |"


def main() -> None:
    rows = []
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as name:
            make_places(Path(name))
            rows.append(row(mistake, said(mistake, Path(name))[1]))
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
