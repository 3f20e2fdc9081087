"""What is exported is what was trained: rehearsed before the first step, read back at every export."""

from __future__ import annotations

import importlib.metadata
import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from gakd.models import ModelConfig, ModelError, add_lora, load_model, load_student, write_folder
from gakd.models import export as exporting
from gakd.models.lora import linear_layers, lora_text
from gakd.models.parts import idle_parameters
from gakd.models.rehearsal import prove_student
from tests import tiny
from tests.architecture_table import own_logits, tokenizer, two_rows
from tests.architectures import tiny_model

peft = pytest.importorskip("peft", reason="the extra gakd[lora]")


def old_chat_model(folder):
    """Settings that transformers wrote once and refuses to write now."""
    tiny_model("Llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    own = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(own))
    return folder


def test_generation_settings_that_transformers_refuses_are_passed_on(tmp_path):
    (tmp_path / "old").mkdir()
    student = load_student(ModelConfig(str(old_chat_model(tmp_path / "old")), lora_rank=0))
    student.generation_config.eos_token_id = [2]
    with pytest.raises(ValueError, match="temperature"):  # which asks once something is changed
        student.save_pretrained(tmp_path / "refused")
    write_folder(student, tokenizer(), tmp_path / "student")
    written = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}.items() <= written.items()
    assert GenerationConfig.from_pretrained(tmp_path / "student").temperature == 0.6
    assert load_model(str(tmp_path / "student")).generation_config.top_p == 0.9


def test_a_weight_that_is_not_written_is_noticed_before_training_and_at_export(tmp_path):
    model = tiny_model("Qwen3")
    model._keys_to_ignore_on_save = {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(
        ModelError, match=r"Qwen3ForCausalLM is not what was trained: \['model.layers.1.mlp.up_proj.weight'\]"
    ):
        prove_student(model)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "old.txt").write_text("an export of before")
    with pytest.raises(ModelError, match=r"it is kept as .*student-unproven"):
        write_folder(model, tokenizer(), tmp_path / "student")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "student-unproven"]
    assert (tmp_path / "student" / "old.txt").exists()
    assert (tmp_path / "student-unproven" / "model.safetensors").exists()


def test_a_model_that_its_files_would_make_another_is_noticed(tmp_path):
    """A setting that is changed on the modules and not in the configuration."""
    model = tiny_model("Qwen3")
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.0
    with pytest.raises(ModelError, match="read back it gives other logits"):
        prove_student(model)


def test_a_merge_that_changes_logits_is_refused_with_the_remedy():
    """Zamba's blocks share their weights: adapters would be merged into them once for each block."""
    with pytest.raises(ModelError, match=r"other logits .*; train all weights with --lora-rank 0, or other layers"):
        prove_student(add_lora(tiny_model("Zamba"), 4, 8, 0.0))


def test_the_rehearsal_leaves_student_cache_and_generator_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path / "cache"))
    student = add_lora(tiny_model("Mixtral"), 4, 8, 0.5).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    generator = torch.get_rng_state()
    prove_student(student)
    assert torch.equal(torch.get_rng_state(), generator)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert list((tmp_path / "cache").iterdir()) == []


# ---- what LoRA adapts ----


@pytest.mark.parametrize("name", ["Phi-3", "GLM-4", "DeepSeek-V3", "OPT", "LFM2", "StarCoder2", "GPT-2", "Falcon"])
def test_every_linear_layer_of_the_text_has_an_adapter(name):
    model = tiny_model(name)
    head = model.get_output_embeddings()
    conv = type(model.transformer.h[0].mlp.c_fc) if name == "GPT-2" else nn.Linear
    expected = {
        own for own, module in model.named_modules() if isinstance(module, (nn.Linear, conv)) and module is not head
    }
    assert set(linear_layers(model)) == expected
    adapted = add_lora(model, 4, 8, 0.0).get_base_model()
    assert {own for own, module in adapted.named_modules() if hasattr(module, "lora_A")} == expected


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("PhiMoE", {"router"}),  # gives more than a product
        ("DeepSeek-V4", {"o_a_proj"}),  # multiplies in groups
        ("Mamba", {"dt_proj", "out_proj"}),  # read by their weight, here or in a GPU's kernel
    ],
)
def test_layers_that_an_adapter_would_not_reach_have_none(name, left):
    model = tiny_model(name)
    linear = {own.rpartition(".")[2] for own, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear - {own.rpartition(".")[2] for own in linear_layers(model)} == left | {"lm_head"}


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen2.5-VL", "SmolVLM", "LLaVA", "Mistral3", "InternVL"])
def test_towers_have_neither_adapters_nor_gradient(name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path)
    for rank in (0, 4):
        student = load_student(ModelConfig(str(tmp_path), lora_rank=rank))
        base = student.get_base_model() if rank else student
        idle = idle_parameters(base)
        assert any("vision" in own or "visual" in own for own in idle)
        assert not any(parameter.requires_grad for parameter in idle.values())
        own_logits(student, two_rows()).sum().backward()
        without = [
            own for own, parameter in student.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        assert without == []


def test_one_line_says_what_is_adapted(tmp_path, capsys):
    tiny.save(tmp_path, tiny_model("Mixtral"), tokenizer())
    student = load_student(ModelConfig(str(tmp_path), lora_rank=4))
    line = "LoRA r=4 on 16 of 17 linear layers, 3.7% of the weights; not: lm_head, experts (3-D parameters)\n"
    assert capsys.readouterr().out == line
    assert f"{lora_text(student)}\n" == line


@pytest.mark.parametrize(("name", "adapted"), [("Llama", 28), ("Phi-3", 8), ("Mixtral", 16)])
def test_the_papers_targets_are_a_choice(name, adapted):
    """Phi-3 has its projections of queries, keys and values in one, under another name."""
    student = add_lora(tiny_model(name), 4, 8, 0.0, ("paper",)).get_base_model()
    assert sum(hasattr(module, "lora_A") for module in student.modules()) == adapted


def test_targets_by_name_are_those_alone(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    student = load_student(ModelConfig(str(tmp_path), lora_rank=4, lora_targets=("q_proj", "v_proj")))
    adapted = {name for name, module in student.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"}
    assert len(adapted) == 8


# ---- its files ----


@pytest.mark.parametrize(
    ("umask", "mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_files_and_folders_follow_the_umask(umask, mode, folder_mode, tmp_path):
    before = os.umask(umask)
    try:
        write_folder(tiny_model("Qwen3"), tokenizer(), tmp_path / "student")
    finally:
        os.umask(before)
    assert (tmp_path / "student").stat().st_mode & 0o777 == folder_mode
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "student").iterdir()}
    assert found == dict.fromkeys(found, mode)
    assert "model.safetensors" in found


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".student-abcd1234").mkdir()
    (tmp_path / ".student-abcd1234" / "model.safetensors").write_text("half")
    (tmp_path / ".student-abcd1234.old").mkdir()
    (tmp_path / ".students").mkdir()
    write_folder(tiny_model("Qwen3"), tokenizer(), tmp_path / "student")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".students", "student"]


# ---- its dtype, and who wrote it ----


@pytest.mark.parametrize(("name", "rank"), [("Qwen3", 0), ("Qwen3", 4), ("DeepSeek-V3", 0)])
def test_weights_are_rounded_once_and_to_nothing_else(name, rank, tmp_path):
    """Against torch's own rounding of what fp32 exports; of DeepSeek-V3's routers the biases stay in fp32, as its class asks."""
    student = add_lora(tiny_model(name), rank, 8, 0.0) if rank else tiny_model(name)
    if rank:
        for weight_name, weight in student.named_parameters():
            if "lora_B" in weight_name:
                nn.init.normal_(weight)
    write_folder(student, tokenizer(), tmp_path / "whole")
    write_folder(student, tokenizer(), tmp_path / "rounded", dtype=torch.bfloat16)
    whole, rounded = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "rounded"))
    assert whole.keys() == rounded.keys()
    kept = {key for key in whole if key.endswith("e_score_correction_bias")}
    assert bool(kept) == (name == "DeepSeek-V3")
    for key, weight in whole.items():
        assert weight.dtype == torch.float32
        assert torch.equal(rounded[key], weight if key in kept else weight.bfloat16())
    assert next(student.parameters()).dtype == torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        path.name for path in (tmp_path / "rounded").iterdir()
    }


def test_sixteen_bits_are_exact_in_thirty_two(tmp_path):
    student = tiny_model("Qwen3").bfloat16()
    write_folder(student, tokenizer(), tmp_path, dtype=torch.float32)
    found = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    assert torch.equal(found["model.norm.weight"].bfloat16(), student.model.norm.weight)


def test_values_beyond_a_dtype_and_a_rounding_that_is_not_written_are_noticed(tmp_path, monkeypatch):
    large = tiny_model("Qwen3")
    with torch.no_grad():
        large.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(
        ModelError, match=r"does not fit float16: model.layers.0.mlp.up_proj.weight has values beyond it"
    ):
        write_folder(large, tokenizer(), tmp_path / "large", dtype=torch.float16)
    assert (tmp_path / "large-unproven" / "config.json").exists()
    save, calls = exporting._save, []

    def altered(model, *rest):
        calls.append(model)
        if len(calls) == 2:  # after the fp32 that was proven
            model = tiny_model("Qwen3").bfloat16()
            model.model.norm.weight.data += 1
        save(model, *rest)

    monkeypatch.setattr(exporting, "_save", altered)
    with pytest.raises(ModelError, match=r"in bfloat16 is not what was rounded: \['model.norm.weight'\] are read back"):
        write_folder(tiny_model("Qwen3"), tokenizer(), tmp_path / "other", dtype=torch.bfloat16)
    assert not (tmp_path / "other").exists()


def test_the_configuration_names_the_versions_that_wrote_it(tmp_path):
    write_folder(tiny_model("Qwen3"), tokenizer(), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    own = importlib.metadata.version("gakd")
    expected = {
        "gakd_version": own,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }
    assert expected.items() <= written.items()
    assert load_model(str(tmp_path)).config.gakd_version == own  # and transformers reads it
