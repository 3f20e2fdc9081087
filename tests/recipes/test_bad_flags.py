"""Flags of any value: a usage message, one clear line, or a run whose every number is finite."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gakd import cli
from gakd.cli import parse
from tests import tiny
from tests.recipe_runs import arguments, make_material, metrics, module_of

FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=45)
# Taken as they are, large values of these ask for processes, memory or hours: each has a test of its own.
COSTLY = {"devices", "num_nodes", "steps", "readout_width", "lora_rank", "max_new_tokens", "student_max_new_tokens"}
# Once ended in a traceback from inside a library.
FOUND_BY_FUZZING = [
    ("gakd", "--student", "~no-such-user/x"),
    ("gakd", "--teacher", "~no-such-user/x"),
    ("gakd", "--student-layers", str(10**9)),
    ("gakd", "--learning-rate", "1e300"),
    ("gakd", "--weight-decay", "1e300"),
    ("gakd", "--readout-width", str(10**12)),
    ("gakd", "--lora-rank", str(10**12)),
    ("gakd", "--lora-alpha", "9" * 401),
    ("gkd", "--beta", "-1"),
    ("gkd", "--beta", "1e300"),
    ("gakd", "--output-dir", "FILE"),
    ("gakd", "--output-dir", "FILE/below"),
    ("gakd", "--output-dir", "x" * 5000),
    ("gakd", "--output-dir", "a\0b"),
    ("gakd", "--output-dir", "\udcff"),
    ("gakd", "--teacher-cache", "é\n"),
]
TEXTS = {"student", "teacher", "dataset", "valid_dataset", "test_dataset", "teacher_cache"}

SMALL_NUMBERS = st.sampled_from(
    ["-1", "0", "1", "2", "3", "-0", "-7", "0.5", "-0.5", "1e-9", "1.0", "0x2", "1_0", " 1"]
)
NOT_FINITE = st.sampled_from(["nan", "inf", "-inf", "NaN", "Infinity"])
LARGE = st.sampled_from(["1e9", "1e300", "1e999", "1000000000", str(2**31), str(2**63), str(10**30)])
WORDS = st.sampled_from(["", " ", "x", "None", "True", "é", "١", "\udcff", "[/bold]", "1 2", "--steps", "a\nb", "\0"])
PATHS = st.sampled_from(
    [
        "/",
        ".",
        "~",
        "~no-such-user/x",
        "/proc/self/mem",
        "/dev/null",
        "FILE",
        "EMPTY",
        "FILE/below",
        "x" * 5000,
        "a/b/c",
    ]
)
ANY = SMALL_NUMBERS | NOT_FINITE | WORDS


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"))
    (folder / "FILE").write_text("not what you think")
    (folder / "EMPTY").mkdir()
    return folder


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """A name that is no folder must not be looked for on the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        yield


def outcome(recipe: str, material: Path, output: Path, *flags: str) -> str:
    """What a command ends with: "usage", "error: ..." or "ran". Any other end is an error of the test."""
    module, printed, said = module_of(recipe), io.StringIO(), io.StringIO()
    small = ("--steps", "1", "--examples", "2", "--text-examples", "1", "--evaluate-every", "0")
    given_flags = [*arguments(material, output, *small, recipe=recipe), *flags]
    status: Any = None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            cli.run(lambda flags: module.main(parse(module.PAPER, module.DEMO, None, flags)), given_flags)
        except SystemExit as stopped:
            status = stopped.code
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if status is not None:
        assert "Traceback" not in said.getvalue()
        assert printed.getvalue() + said.getvalue() != ""
        assert (status, len(lines)) in {(2, 0), (2, 1), (1, 1)}  # 1: what came up in a run, such as an infinite loss
        return lines[0] if lines else "usage"
    rows = metrics(output)
    assert rows
    for name, cell in ((name, cell) for row in rows for name, cell in row.items()):
        assert not cell or math.isfinite(float(cell)), (name, cell)
    return "ran"


def flags_of_kind(config: Any, numbers: bool) -> list[str]:
    names: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        number = field.name in {"steps", "adversarial_share"} or type(value) in (int, float)
        if dataclasses.is_dataclass(value):
            names += flags_of_kind(value, numbers)
        elif number if numbers else field.name in TEXTS:
            names.append(field.name)
    return names


@st.composite
def commands(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]]]:
    recipe = draw(st.sampled_from(["gakd", "sft", "gkd"]))
    config, flags = module_of(recipe).PAPER, []
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.integers(0, 3)):
            name = draw(st.sampled_from([name for name in flags_of_kind(config, numbers=True) if name != "beta"]))
            value = draw(ANY if name in COSTLY else ANY | LARGE)
            if name in {"devices", "num_nodes"} and value.strip() not in {"-1", "0", "-7", "nan", "x", ""}:
                value = "0"
        else:
            name = draw(st.sampled_from(flags_of_kind(config, numbers=False)))
            value = draw(WORDS | PATHS)
        flags.append((f"--{name.replace('_', '-')}", value))
    return recipe, flags


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Iterator[Path]:
    """A fresh output folder each time."""
    folder = tmp_path_factory.mktemp("runs")
    return (folder / f"run-{number}" for number in itertools.count())


def on_this_machine(material: Path, flags: list[tuple[str, str]]) -> list[str]:
    places = {name: str(material / name) for name in ("FILE", "EMPTY", "FILE/below")}
    return [f"{flag}={places.get(value, value)}" for flag, value in flags]


@FUZZ
@given(command=commands())
@example(command=("gakd", [("--learning-rate", "nan")]))
@example(command=("gakd", [("--batch-size", "0")]))
@example(command=("gkd", [("--student-text", "2")]))
@example(command=("sft", [("--dataset", "\udcff")]))
def test_any_flags_are_refused_in_one_line_or_train_on_finite_numbers(material, outputs, command):
    recipe, flags = command
    end = outcome(recipe, material, next(outputs), *on_this_machine(material, flags))
    assert end in {"usage", "ran"} or end.startswith("error: ")
    assert len(end) < 1000


@pytest.mark.parametrize(
    ("flag", "value", "end"),
    [
        ("--batch-size", 10**9, "error: 64 "),
        ("--micro-batch-size", 10**9, "ran"),
        ("--max-length", 10**9, "error: "),
        ("--max-prompt-length", 10**9, "error: --max-prompt-length 1000000000 leaves no room"),
        ("--epochs", 10**12, "ran"),  # --steps goes before it
        ("--warmup-steps", 10**12, "error: --warmup-steps 1000000000000 is longer than the run"),
        ("--save-every", 10**12, "ran"),
        ("--keep-checkpoints", 10**12, "ran"),
        ("--examples", 10**9, "ran"),
        ("--evaluation-batch-size", 10**9, "ran"),
        ("--adversarial-ramp", 10**12, "ran"),
        ("--seed", 2**32, "error: --seed is "),
    ],
)
def test_numbers_that_are_too_large_are_refused_or_do_no_harm(material, tmp_path, flag, value, end):
    assert outcome("gakd", material, tmp_path / "run", flag, str(value)).startswith(end)


@pytest.mark.parametrize(("recipe", "flag", "value"), FOUND_BY_FUZZING)
def test_what_was_once_a_traceback_is_one_line(material, tmp_path, recipe, flag, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end = outcome(recipe, material, tmp_path / "run", *on_this_machine(material, [(flag, value)]))
    assert end.startswith("error: ")
    assert len(end) < 1000


def test_a_sequence_longer_than_a_model_reads_is_refused(material, tmp_path):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=258)
    )
    tiny.save(tmp_path / "gpt2", model, tiny.tokenizer())
    flags = ["--student", str(tmp_path / "gpt2"), "--student-layers", "1"]
    end = outcome("sft", material, tmp_path / "run", *flags)
    assert end == f"error: {tmp_path / 'gpt2'} reads at most 64 tokens, --max-length is 96: lower it to 64"
    assert (
        outcome("sft", material, tmp_path / "run", *flags, "--max-length", "64", "--max-prompt-length", "63") == "ran"
    )
