"""Names, pruning, heads, LoRA, tokenizer checks and export, on tiny models."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from gakd.data import Row, encode, end_ids
from gakd.models import (
    ModelConfig,
    ModelError,
    add_lora,
    check_tokenizers,
    head_of,
    hidden_rows,
    load_model,
    load_student,
    load_tokenizer,
    prune_layers,
    resolve,
    window_of,
    write_folder,
)
from gakd.models.parts import idle_parameters
from gakd.planning.known_models import known_names
from gakd.teachers import load_shared_tokenizer
from gakd.types import Batch
from tests import architectures, tiny

IDS = torch.tensor([[5, 7, 11, 13, 17]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M"),
        ("gpt2", "openai-community/gpt2"),
        ("some/model", "some/model"),
    ],
)
def test_names(name, expected):
    assert resolve(name) == expected


def test_a_folder_is_itself_even_where_it_has_a_known_name(tmp_path, monkeypatch):
    (tmp_path / "Qwen3-0.6B").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("Qwen3-0.6B") == "Qwen3-0.6B"


@pytest.mark.parametrize("name", ["whatever", "./nowhere", "/no/such/folder"])
def test_unknown_names_say_what_is_accepted(name):
    with pytest.raises(ModelError, match="give a"):
        resolve(name)


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json: give a Hugging Face folder") as refused:
        load_model(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "kept"), [([2], [2, 5]), ([3], [1, 3, 5]), ([1], [5]), ([6], [0, 1, 2, 3, 4, 5]), ([0, 4], [0, 4])]
)
def test_pruning_keeps_the_layers_it_says(asked, kept, tmp_path):
    full = tiny.model(layers=6)
    layers = [layer.self_attn.q_proj.weight.clone() for layer in full.model.layers]
    pruned = prune_layers(full, asked)
    assert pruned.config.num_hidden_layers == len(kept)
    assert len(pruned.config.layer_types) == len(kept)
    for index, (layer, original) in enumerate(zip(pruned.model.layers, kept, strict=True)):
        assert torch.equal(layer.self_attn.q_proj.weight, layers[original])
        assert layer.self_attn.layer_idx == index
    # With and without a cache, before and after a round trip through a folder.
    expected = pruned(IDS, use_cache=False).logits
    loaded = load_model(str(tiny.save(tmp_path, pruned, tiny.tokenizer())))
    torch.testing.assert_close(loaded(IDS, use_cache=False).logits, expected)
    generated = loaded.generate(IDS, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = IDS
    for _ in range(4):
        greedy = torch.cat([greedy, loaded(greedy, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, greedy)


@pytest.mark.parametrize("asked", [[7], [3, 1], [0, 6], [-1, 2], [0]])
def test_impossible_prunings_say_what_is_possible(asked):
    with pytest.raises(ModelError, match=r"of 6: give how many to keep \(1 to 6\), or ascending indices below 6"):
        prune_layers(tiny.model(layers=6), asked)


def gemma():
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, final_logit_softcapping=4.0, attn_implementation="eager",
        )
    )  # fmt: skip


def cohere():
    return CohereForCausalLM(
        CohereConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, logit_scale=0.0625,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


@pytest.mark.parametrize("build", [gemma, cohere, tiny.model, lambda: tiny.model(tied=False)])
def test_rows_through_the_head_are_the_models_own_logits(build):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # large enough for a soft cap to bend
    labels = torch.tensor([[-100, -100, 3, 4, 5]])
    batch = Batch.of(IDS, torch.ones_like(IDS), labels)
    expected = model(IDS).logits[0, 2:]
    torch.testing.assert_close(head_of(model).logits(hidden_rows(model, batch)), expected, rtol=1e-4, atol=1e-4)


def test_lora_trains_adapters_alone_and_merges_on_export(tmp_path):
    pytest.importorskip("peft", reason="the extra gakd[lora]")
    torch.manual_seed(0)
    model = add_lora(tiny.model(), rank=4, alpha=8, dropout=0.0)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not head_of(model).weight.requires_grad
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    batch = Batch.of(IDS, torch.ones_like(IDS), torch.tensor([[-100, 1, 2, 3, 4]]))
    expected = head_of(model).logits(hidden_rows(model, batch))
    write_folder(model, tiny.tokenizer(), tmp_path / "student")
    assert any("lora_" in name for name, _ in model.named_parameters()), "export works on a copy"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    torch.testing.assert_close(loaded(IDS).logits[0, 1:], expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(hidden_rows(model, batch), hidden_rows(loaded, batch), atol=1e-4)


def test_export_is_a_plain_folder_that_replaces_the_old_one_whole(tmp_path):
    words = tiny.tokenizer()
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "left_over.txt").write_text("old")
    model = tiny.model()
    write_folder(model, words, tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert not (tmp_path / "student" / "left_over.txt").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert loaded.generation_config.eos_token_id == words.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "student").chat_template == words.chat_template


def test_a_failed_export_leaves_the_old_folder(tmp_path):
    model, words = tiny.model(), tiny.tokenizer()
    write_folder(model, words, tmp_path / "student")
    words.save_pretrained = lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        write_folder(tiny.model(seed=1), words, tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert torch.equal(load_model(str(tmp_path / "student")).lm_head.weight, model.lm_head.weight)


def test_tokenizers_that_differ_are_refused_naming_both(tmp_path):
    student = tiny.save(tmp_path / "small", tiny.model(), tiny.tokenizer())
    other = tiny.tokenizer()
    other.add_tokens(["<extra>"])
    teacher = tiny.save(tmp_path / "big", tiny.model(), other)
    config = ModelConfig(str(student), str(teacher), lora_rank=0)
    with pytest.raises(
        ModelError, match=r"small \(259 tokens\) and teacher .*big \(260 tokens\) have different vocabularies"
    ):
        load_shared_tokenizer(config)


def test_ends_of_text_may_differ_since_a_turn_ends_as_the_template_says():
    student, teacher = tiny.tokenizer(), tiny.tokenizer()
    teacher.eos_token = "<|endoftext|>"
    check_tokenizers(student, teacher, ("a", "b"))  # compares vocabularies
    rows = [Row("2+2?", "", ("4",))]
    assert encode(rows, student)[0].response_ids == encode(rows, teacher)[0].response_ids
    assert set(end_ids(student)) < set(end_ids(teacher))


def test_a_missing_padding_token_becomes_the_end_of_text_token(tmp_path):
    words = tiny.tokenizer()
    words.pad_token = None
    words.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token_id == words.eos_token_id


def test_a_student_is_pruned_and_trainable(tmp_path):
    tiny.save(tmp_path, tiny.model(layers=4), tiny.tokenizer())
    student = load_student(ModelConfig(student=str(tmp_path), student_layers=(2,), lora_rank=0))
    assert len(student.model.layers) == 2
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_activation_checkpointing_keeps_fewer_activations_and_the_same_gradients(lora_rank, tmp_path):
    if lora_rank:
        pytest.importorskip("peft", reason="the extra gakd[lora]")
    folder = str(tiny.save(tmp_path / "student", tiny.model(layers=4), tiny.tokenizer()))
    kept, gradients = [], []
    for checkpointing in (False, True):
        config = ModelConfig(
            student=folder, lora_rank=lora_rank, lora_dropout=0.3, activation_checkpointing=checkpointing
        )
        torch.manual_seed(0)
        model = load_student(config).train()
        torch.manual_seed(1)
        saved: set[int] = set()

        def pack(tensor, saved=saved):
            saved.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = hidden_rows(model, Batch.of(IDS, torch.ones_like(IDS), IDS)).square().sum()
        loss.backward()
        kept.append(len(saved))
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert kept[1] < kept[0] / 3
    assert len(gradients[0]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_an_encoder_decoder_is_refused_as_such(name, tmp_path):
    architectures.tiny_config(name).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder .* give a model that is a decoder alone"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen3.5", "Llama 4", "Qwen2.5-VL", "Mistral3"])
def test_a_vision_language_model_keeps_its_tower(name, tmp_path):
    """Also where transformers' class for text alone would take the files and leave the tower out."""
    model = AutoModelForImageTextToText.from_config(architectures.tiny_config(name))
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert idle_parameters(loaded)


@pytest.mark.parametrize(("name", "window"), [("MPT", 2048), ("Gemma 3", 64), ("Mamba", None), ("Qwen3", 64)])
def test_the_window_under_whatever_name(name, window, tmp_path):
    architectures.tiny_config(name).save_pretrained(tmp_path)
    assert window_of(str(tmp_path)) == window


def test_recomputed_activations_that_a_model_cannot_have_are_one_line(tmp_path):
    architectures.tiny_model("CTRL").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^CTRLLMHeadModel cannot recompute its activations: leave out"):
        load_student(ModelConfig(str(tmp_path), lora_rank=0, activation_checkpointing=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_at_load(value, tmp_path):
    """Also in a row of the embeddings that no text of the proof reads."""
    model = tiny.model()
    with torch.no_grad():
        model.model.embed_tokens.weight[200, 3] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 1 values that are not finite in model.embed_tokens.weight: its files"):
        load_model(str(tmp_path))


def test_names_that_can_be_planned_can_be_loaded():
    """Mamba's weights are on the hub in another form than under these names."""
    for name in known_names():
        assert name.startswith("mamba-") or resolve(name).count("/") == 1
