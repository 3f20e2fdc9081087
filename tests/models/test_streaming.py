"""Models read weight by weight are those that are read whole, refuse what these refuse, and need no host memory of theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from gakd.models import ModelConfig, ModelError, head_of, load_model, load_student
from gakd.models.fingerprints import frozen_mark
from gakd.models.loading import config_of, kind_of
from gakd.models.reading_in_parts import read_in_parts
from gakd.models.streaming import fill, left_of
from gakd.types import LogitShape
from tests.architectures import ARCHITECTURES, tiny_model
from tests.models.streaming_ranks import one_rank
from tests.processes import two

CPU, META = torch.device("cpu"), torch.device("meta")
# Tied embeddings, experts that a file has one by one, buffers, Conv1D, no model prefix in the files.
QUICK = ["Qwen3", "Mixtral", "Gemma 3", "GPT-2", "DeepSeek-V3"]
# Read whole, and said so: no model of their first two layers is one of theirs, or their head is none that gakd reads.
WHOLE = {
    "BERT (decoder)", "ELECTRA (decoder)", "GPT-NeoX-Japanese", "Gemma 3n (text)", "Gemma 4", "Gemma 4 (text)", "HRM-Text",
    "MiniCPM3", "MiniMax", "ModernBERT (decoder)", "PaliGemma", "RemBERT (decoder)", "RoBERTa (decoder)",
    "RoFormer (decoder)", "XLM-RoBERTa (decoder)", "Zamba", "Zamba2",
}  # fmt: skip
MIB = 2**20


def tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_same(found, expected):
    ours, theirs = tensors(found), tensors(expected)
    assert list(ours) == list(theirs)
    for name, weight in theirs.items():
        assert (ours[name].dtype, ours[name].device) == (weight.dtype, weight.device), name
        assert torch.equal(ours[name], weight), name
        assert ours[name].requires_grad == weight.requires_grad, name


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in QUICK for dtype in (torch.bfloat16, torch.float32)),
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.slow) for name in ARCHITECTURES if name not in QUICK),
    ],
)
def test_a_model_read_in_parts_is_the_one_read_whole(name, dtype, tmp_path, capsys):
    tiny_model(name).save_pretrained(tmp_path)
    whole = load_model(str(tmp_path), dtype)
    capsys.readouterr()
    model = load_model(str(tmp_path), dtype, device=META)
    said = capsys.readouterr().out
    if left_of(model) is None:
        assert name in WHOLE, said
        assert "is read whole into host memory first" in said
        assert_same(model, whole)
        return
    assert (said, name in WHOLE) == ("", False)
    head, expected = head_of(model), head_of(whole)
    assert torch.equal(head.weight, expected.weight)
    assert head.shape == expected.shape
    there = {id(weight) for weight in tensors(model).values() if not weight.is_meta}
    kept = {id(weight) for weight in model.get_output_embeddings().parameters()}
    assert all(id(weight) not in there or id(weight) in kept for weight in model.parameters())
    assert frozen_mark(model) == frozen_mark(whole)
    fill(model, CPU)
    assert left_of(model) is None
    assert_same(model, load_model(str(tmp_path), dtype))  # a forward changes a buffer of some
    assert model.generation_config.to_dict() == whole.generation_config.to_dict()


def test_a_student_whose_first_layers_say_something_else_than_all_is_refused(tmp_path, monkeypatch):
    tiny_model("Qwen3").save_pretrained(tmp_path)
    student = load_student(ModelConfig(str(tmp_path), lora_rank=0), sharded=True)
    assert left_of(student) is not None
    monkeypatch.setattr("gakd.models.heads._proven", lambda base, head: LogitShape(1.0 + base.config.num_hidden_layers))
    with pytest.raises(ModelError, match=r"other logits than its first layers with its head gave: LogitShape\(scale=5"):
        load_student(ModelConfig(str(tmp_path), lora_rank=0), sharded=True)


def test_weights_go_to_their_device_one_by_one(tmp_path):
    """As to a GPU, with the CPU for one."""
    tiny_model("Mixtral").save_pretrained(tmp_path)
    name, expected = str(tmp_path), load_model(str(tmp_path))
    found = read_in_parts(kind_of(config_of(name), name), name, torch.float32, False, CPU)
    assert left_of(found) is None
    assert_same(found, expected)


@pytest.mark.parametrize("device", [CPU, META])
@pytest.mark.parametrize("what", ["missing", "shape", "damaged", "not finite", "bias"])
def test_what_is_refused_of_a_whole_model_is_refused_in_parts(device, what, tmp_path):
    tiny_model("Qwen3").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    wanted = "model.layers.3.mlp.up_proj.weight"
    if what == "missing":
        weights.pop(wanted)
    elif what == "shape":
        weights[wanted] = weights[wanted][:-1].clone()
    elif what == "not finite":
        weights[wanted][3, 5] = float("nan")
    elif what == "bias":
        weights["model.layers.3.mlp.up_proj.bias"] = torch.zeros(weights[wanted].shape[0])
    save_file(weights, path, {"format": "pt"})
    if what == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    said = {
        "missing": "lacks 1 weights", "shape": "of other shapes", "damaged": "is damaged or not whole", "bias": "leaves out of",
        "not finite": r"not finite in .*layers.3.mlp.up_proj.weight",
    }  # fmt: skip
    with pytest.raises(ModelError, match=said[what]):
        fill(load_model(str(tmp_path), device=device), CPU)


def test_files_that_cannot_be_read_in_parts_are_read_whole_and_said_so(tmp_path, capsys):
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_model(str(tmp_path), device=META)
    assert (
        capsys.readouterr().out == f"{tmp_path} is read whole into host memory first: its weights are not safetensors\n"
    )
    assert not any(weight.is_meta for weight in loaded.parameters())


def test_tied_weights_that_both_lie_in_the_files(tmp_path, capsys):
    """The same twice: one weight. Two that differ: as transformers reads them, untied, whole."""
    tiny_model("Qwen3").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path, {"format": "pt"})
    model = load_model(str(tmp_path), device=META)
    fill(model, CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_same(model, load_model(str(tmp_path)))
    weights["lm_head.weight"][3, 4] += 1
    save_file(weights, path, {"format": "pt"})
    capsys.readouterr()
    model = load_model(str(tmp_path), device=META)
    assert "are tied and differ" in capsys.readouterr().out
    assert_same(model, load_model(str(tmp_path)))


# ---- cut over two processes ----


def measured_on_two(folder: Path, output: Path, role: str) -> list[dict]:
    """`found_on_two` of models read in parts, by processes of their own, whose memory is theirs alone."""
    output.mkdir()
    # Freed memory then goes back at once, and is not counted as the next weight's.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.models.streaming_ranks"]
    rest = [role, str(folder), str(output), "meta"]
    ranks = [subprocess.Popen([*command, str(rank), *rest], env=environment) for rank in range(2)]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    return figures(output)


def found_on_two(folder: Path, output: Path, device: str, role: str) -> list[dict]:
    """Each rank's figures, with its parts under `weights`."""
    output.mkdir()
    two(one_rank, role, str(folder), str(output), device)
    return figures(output)


def figures(output: Path) -> list[dict]:
    return [
        json.loads((output / f"rank{rank}.json").read_text())
        | {"weights": load_file(output / f"rank{rank}.safetensors")}
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Qwen3", "teacher"),
        ("Mixtral", "teacher"),
        ("Gemma 3", "teacher"),
        ("Qwen3", "student"),
        ("Gemma 3", "student"),
    ],
)
def test_each_rank_reads_the_part_that_it_keeps(name, role, tmp_path):
    """Bit for bit what cutting a whole model leaves on it, and trains; rows that two do not divide included."""
    tiny_model(name).save_pretrained(tmp_path / "model")
    found, expected = (found_on_two(tmp_path / "model", tmp_path / device, device, role) for device in ("meta", "cpu"))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["mark"] == theirs["mark"]
        assert ours["weights"].keys() == theirs["weights"].keys()
        for own, weight in theirs["weights"].items():
            assert torch.equal(ours["weights"][own], weight), own


@pytest.mark.slow
def test_host_memory_is_a_ranks_part_and_what_proves_the_head(tmp_path):
    config = LlamaConfig(
        vocab_size=6000, hidden_size=512, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # Read in another precision than it lies there: what is read as it lies may stay a window on its file.
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="30MB")
    model.float()
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    size = sum(weight.nbytes for weight in model.parameters())
    layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    outside, head = size - 16 * layer, model.lm_head.weight.nbytes
    teacher, student = (measured_on_two(tmp_path / "model", tmp_path / role, role) for role in ("teacher", "student"))
    # A rank's part, twice what proves the head (once to be read, once to be gathered), and libraries that are first used.
    bound = size / 2 + 2 * (outside + 2 * layer) + 64 * MIB
    print("MiB", size / MIB, bound / MIB, [[one["peak"] / MIB for one in way] for way in (teacher, student)])
    assert all(one["parts"] == (size + head) / 2 for one in teacher)  # the head is whole on each
    assert all(one["peak"] < min(bound, size) for one in teacher)
    assert all(one["parts"] == size / 2 for one in student)
    # The first process has all of a student once, to prove its export.
    assert student[1]["peak"] < min(bound, size) < student[0]["peak"]
