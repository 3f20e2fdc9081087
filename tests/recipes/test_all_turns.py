"""Every turn of the assistant trained: with a live teacher and with a cached one the same run, but for rounding."""

from __future__ import annotations

import json
import random

import pytest

from gakd.cli.recipe_files import load_recipe
from gakd.data import DataConfig
from gakd.models import load_tokenizer
from tests.chat_shapes import CHATML
from tests.recipe_runs import arguments, make_material, metrics, run_here
from tests.recipe_table import ROOT


def conversations(count: int, name: str) -> str:
    draw = random.Random(name)
    lines = []
    for index in range(count):
        turns = []
        for turn in range(draw.randint(1, 3)):
            answer = {"role": "assistant", "content": "".join(draw.choices("abc ", k=draw.randint(2, 9))) + "."}
            turns += [
                {"role": "user", "content": f"{name} {index} {turn}"},
                answer | ({"weight": 0} if draw.random() < 0.2 else {}),
            ]
        turns[-1].pop("weight", None)
        lines.append(json.dumps({"messages": turns}))
    return "\n".join(lines) + "\n"


def test_a_cached_teacher_gives_the_run_of_a_live_one(tmp_path):
    material = make_material(tmp_path)
    for model in ("student", "teacher"):
        words = load_tokenizer(str(material / model))
        words.chat_template = CHATML  # earlier turns as the last one: one sequence holds them all
        words.save_pretrained(material / model)
    for split, count in (("train", 48), ("valid", 8), ("test", 8)):
        (material / "data" / f"{split}.jsonl").write_text(conversations(count, split))
    lengths = (
        "--max-length",
        "200",
        "--max-prompt-length",
        "150",
        "--train-on",
        "all",
        "--steps",
        "4",
        "--text-examples",
        "0",
    )
    live = arguments(material, tmp_path / "live", *lengths, "--valid-text-examples", "0")
    run_here("gakd", *live)
    tool = load_recipe(ROOT / "recipes" / "tools" / "cache_teacher.py")
    data = DataConfig(str(material / "data"), max_length=200, max_prompt_length=150, train_on="all")
    tool.main(tool.Config(str(material / "teacher"), tmp_path / "cache", data=data))
    cached = [*live, "--output-dir", str(tmp_path / "cached"), "--teacher-cache", str(tmp_path / "cache")]
    run_here("gakd", *cached)
    for ours, theirs in zip(metrics(tmp_path / "cached"), metrics(tmp_path / "live"), strict=True):
        for name, value in theirs.items():  # batches of the cache were padded otherwise
            assert float(ours[name] or 0) == pytest.approx(float(value or 0), rel=2e-3, abs=1e-4), name
