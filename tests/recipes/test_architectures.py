"""Recipes on other architectures than Qwen3's, as users run them: experts, caps, recurrences, towers; and what is refused."""

from __future__ import annotations

import functools
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from gakd.errors import InputError
from gakd.models import ModelConfig, load_model, load_student
from gakd.models.lora import add_lora
from gakd.models.parts import idle_parameters
from gakd.models.reach import unreached_weights
from gakd.models.read_back import text_logits
from tests import tiny
from tests.architectures import ENCODER_DECODERS, random_model, tiny_config
from tests.processes import run_on_two
from tests.recipe_runs import metrics, run_here, scores

VOCABULARY, LENGTH, STEPS = 272, 96, 3
# Of tiny.tokenizer(), and beyond it: no text has a picture's.
SPECIAL = {"bos_token_id": 257, "pad_token_id": 256, "eos_token_id": 258, "image_token_id": 260, "video_token_id": 261}
WHOLE, LORA = ("--lora-rank", "0"), ("--lora-rank", "4", "--lora-dropout", "0")
ALL_CHOSEN = {"index_topk": LENGTH}  # else one of two almost equal tokens is attended to, by how many rows a batch has
ROUTED = {"output_router_logits": True, "router_aux_loss_coef": 0.02}


class Case(NamedTuple):
    """A run: an architecture, what is changed in its text's configuration, and flags."""

    name: str
    flags: tuple[str, ...] = WHOLE
    changes: Mapping[str, Any] = MappingProxyType({})

    @property
    def layers(self) -> tuple[int, ...]:
        place = self.flags.index("--student-layers") if "--student-layers" in self.flags else None
        return () if place is None else (int(self.flags[place + 1]),)

    @property
    def rank(self) -> int:
        return int(self.flags[self.flags.index("--lora-rank") + 1])


def config_with(name: str, **changes: Any) -> PreTrainedConfig:
    """A tiny configuration for the vocabulary and the texts here, with changes of its text's part."""
    config = tiny_config(name)
    for part in (config.get_text_config(), config):
        fields = {
            "vocab_size": VOCABULARY,
            "vocab_size_per_layer_input": VOCABULARY,
            "max_position_embeddings": 2 * LENGTH,
        }
        for key, value in (fields | SPECIAL).items():
            if hasattr(part, key):
                setattr(part, key, value)
    for key, value in changes.items():
        setattr(config.get_text_config(), key, value)
    return config


def model_with(name: str, seed: int, **changes: Any) -> PreTrainedModel:
    """With all of its parts: Llama 4's class of text alone knows the whole configuration, too."""
    config = config_with(name, **changes)
    return random_model(config, seed)


def make_pair(folder: Path, name: str, **changes: Any) -> Path:
    """A student and a teacher of one architecture, in folders."""
    for seed, role in enumerate(("student", "teacher"), start=1):
        tiny.save(folder / role, model_with(name, seed, **changes), tiny.tokenizer())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for split, rows in (("train", 16), ("valid", 4), ("test", 4)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for index in range(rows):
                response = "".join(draw.choices("abcd ", k=draw.randint(2, 30)))
                record = {"instruction": "say " * draw.randint(0, 3) + f"{split} {index}", "output": f"<{response}>"}
                file.write(json.dumps(record) + "\n")
    return folder


def arguments(pair: Path, data: Path, output: Path, *more: str, recipe: str = "gakd") -> list[str]:
    teacher = [] if recipe == "sft" else ["--teacher", str(pair / "teacher")]
    own = {"gakd": ["--readout-width", "8", "--discriminator-width", "8"], "minillm": ["--student-max-new-tokens", "6"]}
    return [
        "--student", str(pair / "student"), *teacher, "--dataset", str(data), "--output-dir", str(output), *own.get(recipe, []),
        "--steps", str(STEPS), "--batch-size", "8", "--micro-batch-size", "4", "--learning-rate", "3e-3",
        "--max-length", str(LENGTH), "--max-prompt-length", "64", "--evaluate-every", str(STEPS), "--examples", "4",
        "--text-examples", "3", "--valid-text-examples", "2", "--max-new-tokens", "4", *more,
    ]  # fmt: skip


def trained_student(pair: Path, output: Path, case: Case) -> nn.Module:
    """The student as the last checkpoint has it, adapters beside its weights."""
    config = ModelConfig(str(pair / "student"), student_layers=case.layers, lora_rank=case.rank)
    student = load_student(config)
    saved = load_file(output / "checkpoints" / f"step-{STEPS}" / "student.safetensors")
    missing, unexpected = student.load_state_dict(
        {name.removeprefix("student."): weight for name, weight in saved.items()}, strict=False
    )
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert (unexpected, trained & set(missing)) == ([], set())
    return student.eval()


def assert_trained(pair: Path, output: Path, case: Case) -> None:
    """Finite losses; another student than before; its export is the trained one, what text never reaches as it was."""
    rows = metrics(output)
    numbers = [float(cell) for row in rows for name, cell in row.items() if cell and name != "step"]
    assert numbers
    assert all(map(math.isfinite, numbers))
    before, after = (scores(output, when) for when in ("before", "after"))
    assert math.isfinite(after["cross_entropy"])
    assert after["cross_entropy"] != before["cross_entropy"]
    student, exported = trained_student(pair, output, case), load_model(str(output / "student"))
    torch.testing.assert_close(text_logits(exported), text_logits(student), rtol=1e-4, atol=1e-4)
    original, found = load_model(str(pair / "student")), exported.state_dict()
    idle = idle_parameters(original)
    assert all(torch.equal(found[name], weight) for name, weight in idle.items())
    assert bool(idle) == (original.config.get_text_config() is not original.config)
    assert (
        exported.config.get_text_config().num_hidden_layers
        == (case.layers or (original.config.get_text_config().num_hidden_layers,))[0]
    )


TWO = ("--student-layers", "2")
CASES = [
    Case("Mixtral", WHOLE, ROUTED),
    Case("Gemma 2", WHOLE),
    Case("Qwen2.5-VL", LORA),
    # The quick tier ends here.
    Case("Mixtral", (*LORA, *TWO), ROUTED),
    Case("Gemma 2", (*LORA, *TWO)),
    Case("Gemma 3 (text)", (*WHOLE, *TWO)),
    Case("Gemma 3 (text)", LORA),
    Case("Gemma 4 (text)", WHOLE),
    Case("Gemma 4 (text)", LORA),
    Case("Llama 4 (text)", WHOLE),
    Case("Llama 4 (text)", (*LORA, *TWO)),
    Case("Falcon-H1", WHOLE),
    Case("Falcon-H1", (*LORA, *TWO)),
    Case("Mamba", (*WHOLE, *TWO)),
    Case("Mamba", LORA),
    Case("Qwen3-Next", (*WHOLE, *TWO), ROUTED),
    Case("Qwen3.5", WHOLE),
    Case("Qwen3.5", LORA),
    Case("gpt-oss", WHOLE, ROUTED),
    Case("gpt-oss", LORA),
    Case("DeepSeek-V3", WHOLE),
    Case("DeepSeek-V3", (*LORA, *TWO)),
    Case("GPT-2", (*WHOLE, *TWO)),
    Case("GPT-2", LORA),
    Case("Granite", WHOLE),
    Case("Granite", LORA),
    Case("Cohere", WHOLE),
    Case("LFM2", WHOLE),
    Case("LFM2", LORA),
    Case("RWKV", WHOLE),
    Case("RWKV", LORA),
    Case("Qwen2.5-VL", WHOLE),
    Case("SmolVLM", (*WHOLE, *TWO)),
    Case("LLaVA", LORA),
    Case("Llama 4", LORA),
    Case("Llama 3.2 Vision", WHOLE),
    Case("Phi-4-multimodal", LORA),
]
QUICK = 3


def name_of(case: Case) -> str:
    return " ".join([case.name, "LoRA" if case.rank else "whole", *(["pruned"] if case.layers else [])])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if place < QUICK else pytest.mark.slow, id=name_of(case))
        for place, case in enumerate(CASES)
    ],
)
def test_it_trains_and_its_export_is_what_was_trained(case, data, tmp_path):
    pair, output = make_pair(tmp_path, case.name, **case.changes), tmp_path / "run"
    run_here("gakd", *arguments(pair, data, output, *case.flags))
    assert_trained(pair, output, case)
    balances = [float(row["router_balance"]) for row in metrics(output) if row.get("router_balance")]
    assert len(balances) == (STEPS if case.changes == ROUTED else 0)
    assert all(balance > 0 for balance in balances)


@pytest.mark.slow
def test_a_balance_of_weight_0_is_off(data, tmp_path):
    pair = make_pair(tmp_path, "Mixtral", **ROUTED)
    for name, weight in (("own", ()), ("same", ("0.02",)), ("off", ("0",))):
        flag = ("--router-balance-weight", *weight) if weight else ()
        run_here("gakd", *arguments(pair, data, tmp_path / name, *WHOLE, *flag))
    own, same, off = (load_file(tmp_path / name / "student/model.safetensors") for name in ("own", "same", "off"))
    assert all(torch.equal(same[name], own[name]) for name in own)
    assert not all(torch.equal(off[name], own[name]) for name in own)
    assert all("router_balance" not in row for row in metrics(tmp_path / "off"))
    assert json.loads((tmp_path / "off/student/config.json").read_text())["output_router_logits"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "case"),
    [
        ("sft", Case("Qwen3-MoE", WHOLE, ROUTED)),
        ("reverse_kl", Case("Mixtral", LORA, ROUTED)),
        ("gkd", Case("OLMoE", LORA, ROUTED)),
        ("minillm", Case("Mamba", WHOLE)),  # student and teacher write token by token, without a key-value cache
    ],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
def test_other_recipes_train_them_too(recipe, case, data, tmp_path):
    pair, output = make_pair(tmp_path, case.name, **case.changes), tmp_path / "run"
    run_here(recipe, *arguments(pair, data, output, *case.flags, recipe=recipe))
    assert_trained(pair, output, case)


# ---- micro-batches and processes ----


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Callable[[Case], tuple[Path, Path]]:
    """The pair of a case, and the folder of its run in one process."""

    @functools.cache
    def run(name: str, flags: tuple[str, ...]) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("alone")
        pair = make_pair(folder, name, **{"Mixtral": ROUTED, "DeepSeek-V3.2": ALL_CHOSEN}.get(name, {}))
        run_here("gakd", *arguments(pair, data, folder / "run", *flags))
        return pair, folder / "run"

    return lambda case: run(case.name, case.flags)


def assert_same_run(output: Path, expected: Path) -> None:
    """Losses, gradient norms and validations of each step; the exported student, and what it writes."""
    for row, other in zip(metrics(output), metrics(expected), strict=True):
        # How much is padding follows from the micro-batches.
        ours, theirs = (
            {key: float(cell) for key, cell in cells.items() if cell and key != "padding"} for cells in (row, other)
        )
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    found, wanted = (load_file(folder / "student" / "model.safetensors") for folder in (output, expected))
    assert found.keys() == wanted.keys()
    for name in wanted:
        # Adam's first steps are of one size, be a gradient next to nothing or not.
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)
    assert scores(output, "after")["predictions"] == scores(expected, "after")["predictions"]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1", "3", "8"])
def test_micro_batches_leave_a_mixture_of_experts_alone(size, alone, data, tmp_path):
    pair, expected = alone(Case("Mixtral", WHOLE))
    run_here("gakd", *arguments(pair, data, tmp_path / "run", *WHOLE, "--micro-batch-size", size))
    assert_same_run(tmp_path / "run", expected)
    assert all(row["router_balance"] for row in metrics(expected) if row["gradient_norm"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "strategy"),
    [
        (Case("Mixtral", WHOLE), "ddp"),
        (Case("Mixtral", WHOLE), "fsdp2"),
        (Case("Gemma 3", WHOLE), "ddp"),
        (Case("Gemma 3", WHOLE), "fsdp2"),
        (Case("Gemma 3", LORA), "ddp"),
        (Case("Gemma 3", LORA), "fsdp2"),
        (Case("Zamba", WHOLE), "fsdp2"),  # its layers share an attention
        (Case("DeepSeek-V3.2", WHOLE), "ddp"),  # its indexers get no gradient
    ],
    ids=lambda part: part if isinstance(part, str) else name_of(part),
)
def test_two_processes_give_what_one_gives(case, strategy, alone, data, tmp_path):
    pair, expected = alone(case)
    flags = (*case.flags, "--micro-batch-size", "2", "--strategy", strategy)
    run_on_two("gakd", arguments(pair, data, tmp_path / "run", *flags), tmp_path / "printed")
    assert_same_run(tmp_path / "run", expected)
    assert_trained(pair, tmp_path / "run", case) if strategy == "ddp" else None


def test_weights_without_a_gradient_are_known():
    """Two processes would wait for theirs."""
    for name, part in (("DeepSeek-V3.2", ".indexer."), ("ERNIE 4.5 VL MoE", ".vision_moe."), ("Mixtral", None)):
        model = model_with(name, 0)
        for parameter in idle_parameters(model).values():
            parameter.requires_grad_(False)
        expected = [path for path, own in model.named_parameters() if own.requires_grad and part and part in path]
        assert unreached_weights(model) == expected
    assert unreached_weights(add_lora(model_with("Phi-4-multimodal", 0), 2, 4, 0.0)) != []


# ---- what is refused ----

REFUSED = [
    (Case("BERT (decoder)"), "makes other logits of its hidden states than its head's weight does"),
    (Case("T5"), "is an encoder-decoder (T5Config), whose decoder reads an encoder: give a model that is a decoder"),
    (
        Case("BART"),
        "is an encoder-decoder (BartConfig), whose decoder reads an encoder: give a model that is a decoder",
    ),
    (Case("PaliGemma"), "a layer stands between them, or it is not causal"),
    (
        Case("Zamba", LORA),
        "what is exported of ZambaForCausalLM is not what was trained: read back it gives other logits "
        "(relative difference N); train all weights with --lora-rank 0, or other layers by --lora-targets",
    ),
    (
        Case("MiniCPM3", (*WHOLE, *TWO)),
        "MiniCPM3ForCausalLM cannot be pruned to these layers: layer 1 would have residual_scale = N at its new place, for N; "
        "keep others, or leave out --student-layers",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda part: part.name if isinstance(part, Case) else "")
def test_what_cannot_be_trained_is_refused_in_one_line(case, reason, data, tmp_path):
    pair, output = tmp_path, tmp_path / "run"
    if case.name in ENCODER_DECODERS:
        for role in ("student", "teacher"):
            tiny.save(pair / role, AutoModelForSeq2SeqLM.from_config(config_with(case.name)), tiny.tokenizer())
    else:
        make_pair(pair, case.name)
    with pytest.raises(InputError) as refused:
        run_here("gakd", *arguments(pair, data, output, *case.flags))
    text = str(refused.value)
    assert "\n" not in text
    assert reason in re.sub(r"\d+\.\d+(e-?\d+)?", "N", text)
    assert not (output / "metrics.csv").exists()
    assert not (output / "student").exists()


# ---- what a student's folder says beside its weights ----


@pytest.mark.slow
def test_generation_settings_that_contradict_each_other_are_passed_on(data, tmp_path):
    """As many published models have them: greedy, and a temperature besides; transformers refuses to write these."""
    pair, output = make_pair(tmp_path, "Qwen3"), tmp_path / "run"
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (pair / "student" / "generation_config.json").write_text(json.dumps(settings))
    run_here("gakd", *arguments(pair, data, output, *WHOLE))
    assert_trained(pair, output, Case("Qwen3"))
    written = json.loads((output / "student" / "generation_config.json").read_text())
    assert {name: written.get(name, False) for name in settings} == settings
    assert written["eos_token_id"] == 258
