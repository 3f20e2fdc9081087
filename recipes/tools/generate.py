"""Responses of a model to the prompts of a dataset, as JSONL that --dataset reads back.

Teacher text for sequence-level distillation, and its use:
python recipes/tools/generate.py --model Qwen3-8B --dataset dolly --output teacher-text/train.jsonl
python recipes/baselines/sft.py --dataset teacher-text --valid-dataset dolly --test-dataset dolly

Killed at any moment, the same command goes on after the last whole batch and writes the same rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from gakd.data import DataConfig, DataError, Example, Split, load_split
from gakd.data.rows import row_from
from gakd.evaluation import Generation, Sampling, decode, generate
from gakd.logs import ProgressView
from gakd.models import load_model, load_tokenizer


@dataclass
class Config:
    model: str
    """The model that writes: a folder, a hub id or a name such as Qwen3-8B."""
    output: Path
    """JSONL file to write; settings and progress go beside it, into OUTPUT.json."""
    split: Split = "train"
    """Split of the dataset whose prompts are answered."""
    max_examples: int | None = None
    """Answer the first so many prompts; None for all."""
    batch_size: int = 16
    """Prompts per batch: memory and speed, and the drawn text, since a batch shares its random numbers."""
    drop_unfinished: bool = False
    """Leave out responses that --max-new-tokens cut: as training text they teach to stop in mid-sentence."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and arithmetic; bfloat16 is for GPUs."""
    data: DataConfig = field(default_factory=DataConfig)
    sampling: Sampling = field(default_factory=Sampling)


def main(config: Config) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(config.model)
    examples = load_split(config.data, tokenizer, config.split)[: config.max_examples]
    batches = [examples[start : start + config.batch_size] for start in range(0, len(examples), config.batch_size)]
    state = claim(config.output, asdict(config) | {"examples": len(examples), "device": device})
    done = state["done"]
    if done["batches"] < len(batches):
        model = load_model(config.model, getattr(torch, config.dtype)).to(device)
        view = ProgressView(len(batches), done["batches"], shown=True)
        for index in range(done["batches"], len(batches)):
            # A seed for each batch: what it draws does not depend on where a run was interrupted.
            sampling = replace(config.sampling, seed=(config.sampling.seed << 32) + index)
            prompts = [example.prompt_ids for example in batches[index]]
            generations = generate(model, tokenizer, prompts, sampling, config.batch_size)
            records = rows(batches[index], decode(tokenizer, generations), generations, config.drop_unfinished)
            with config.output.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
            done["batches"], done["bytes"] = index + 1, config.output.stat().st_size
            done["rows"] += len(records)
            done["unfinished"] += sum(not generation.finished for generation in generations)
            write_state(config.output, state)
            tokens = sum(len(generation.ids) for generation in generations)
            view.update(index + 1, tokens, {"mean length": tokens / len(generations)})
        view.close()
    cut = f"{done['unfinished']} cut at {config.sampling.max_new_tokens} tokens"
    left_out = f"{len(examples) - done['rows']} empty or unfinished left out" if done["rows"] < len(examples) else ""
    print(f"{config.output}: {done['rows']} rows ({', '.join(filter(None, (cut, left_out)))})")


def rows(
    examples: Sequence[Example], texts: Sequence[str], generations: Sequence[Generation], drop_unfinished: bool
) -> list[dict[str, Any]]:
    """Records as `gakd.data` reads them; those that it would refuse, such as empty responses, are left out."""
    records = []
    for example, text, generation in zip(examples, texts, generations, strict=True):
        row = example.row
        record: dict[str, Any] = {"instruction": row.instruction, "input": row.input, "output": text}
        if row.history:
            turns = [{"role": "user", "content": row.instruction}, {"role": "assistant", "content": text}]
            record = {"messages": [*row.history, *turns]}
        try:
            row_from(record, "")
        except DataError:
            continue
        if generation.finished or not drop_unfinished:
            records.append(record | {"finished": generation.finished})
    return records


def claim(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state to go on from: of a new output, or of one that the same settings began, cut to its last whole batch."""
    settings = json.loads(json.dumps({name: value for name, value in settings.items() if name != "output"}, default=str))
    sidecar = output.with_name(output.name + ".json")
    if not sidecar.exists():
        if output.exists():
            raise SystemExit(f"{output} has no {sidecar.name}, so this script did not write it: give another --output")
        state = {"settings": settings, "done": {"batches": 0, "bytes": 0, "rows": 0, "unfinished": 0}}
        output.parent.mkdir(parents=True, exist_ok=True)
        write_state(output, state)
        return state
    state = json.loads(sidecar.read_text())
    before = state["settings"]
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        differences = "; ".join(f"{name} was {before.get(name)}, is {settings[name]}" for name in changed)
        raise SystemExit(f"{output} was begun with other settings: {differences}. Use the same, or another --output")
    output.touch()
    if output.stat().st_size < state["done"]["bytes"]:
        raise SystemExit(f"{output} is shorter than {sidecar.name} says, it was changed: delete both to start again")
    os.truncate(output, state["done"]["bytes"])
    return state


def write_state(output: Path, state: dict[str, Any]) -> None:
    scratch = output.with_name(f".{output.name}.json")
    scratch.write_text(json.dumps(state, indent=2))
    os.replace(scratch, output.with_name(output.name + ".json"))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
