"""A head is proven, whatever a class is called: right numbers are found, others refused, both before anything is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from gakd import Batch, CrossEntropy, Distiller, LocalTeacher
from gakd.models import ModelError, add_lora, head_of, hidden_rows
from gakd.models.read_back import text_logits
from gakd.models.writing import Writing, prove_writing
from tests.architecture_table import own_logits, two_rows
from tests.architectures import tiny_model


def changed(change, **settings: float) -> Qwen3ForCausalLM:
    """A class of tomorrow: Qwen3 whose forward changes its logits, and numbers of its configuration."""

    class Tomorrow(Qwen3ForCausalLM):
        def forward(self, *arguments, **named):
            output = super().forward(*arguments, **named)
            output.logits = change(output.logits, self.config)
            return output

    model = tiny_model("Qwen3")
    model.__class__ = Tomorrow
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize(
    ("change", "settings", "scale", "softcap"),
    [
        (lambda z, c: z, {}, 1.0, None),
        (lambda z, c: z * c.novel_factor, {"novel_factor": 3.7}, 3.7, None),
        (lambda z, c: z / c.novel_factor, {"novel_factor": 3.0}, 1 / 3.0, None),
        (lambda z, c: z * c.base / c.hidden_size, {"base": 20.0}, 20.0 / 32, None),
        (lambda z, c: z * c.hidden_size**-0.5, {}, 32**-0.5, None),
        (lambda z, c: c.novel_cap * torch.tanh(z / c.novel_cap), {"novel_cap": 17.0}, 1.0, 17.0),
        (lambda z, c: c.cap * torch.tanh(z * c.up / c.cap), {"cap": 30.0, "up": 0.25}, 0.25, 30.0),
    ],
)
def test_scale_and_cap_are_found_by_asking(change, settings, scale, softcap):
    """The cap of 17 bends logits of a random model by 1e-6: it shows because larger ones are asked about."""
    model, batch = changed(change, **settings), two_rows()
    head = head_of(model)
    assert (head.scale, head.softcap) == (scale, softcap)
    with torch.no_grad():
        torch.testing.assert_close(head.logits(hidden_rows(model, batch)), own_logits(model, batch))


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda z, c: z + 0.01 * z.square(), {}),
        (lambda z, c: z.abs(), {}),
        (lambda z, c: 17.0 * torch.tanh(z / 17.0), {}),  # a cap that is nowhere in the configuration
        (lambda z, c: z - z.mean(-1, keepdim=True), {}),
        (lambda z, c: z.roll(1, -1), {}),
    ],
)
def test_other_functions_are_refused_naming_the_difference(change, settings):
    with pytest.raises(ModelError, match=r"^Tomorrow makes other logits of its hidden states .* relative difference"):
        head_of(changed(change, **settings))


class Behind(LlamaForCausalLM):
    """A layer between backbone and head, as BERT's decoders have."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.model.register_forward_hook(self._through)

    def _through(self, module: nn.Module, inputs: tuple, output):
        if self.inside:
            output.last_hidden_state = self.transform(output.last_hidden_state)
        return output

    inside = False

    def forward(self, *arguments, **named):
        self.inside = True
        try:
            return super().forward(*arguments, **named)
        finally:
            self.inside = False


@pytest.mark.parametrize(
    "name", ["BERT (decoder)", "RoBERTa (decoder)", "ELECTRA (decoder)", "ModernBERT (decoder)", "PaliGemma"]
)
def test_families_with_something_between_are_refused(name):
    with pytest.raises(ModelError, match="whose logits are softcap"):
        head_of(tiny_model(name))


def test_a_layer_between_backbone_and_head_is_refused():
    model = Behind(tiny_model("Llama").config).eval()
    with pytest.raises(ModelError, match="gives its head other hidden states than its backbone returns"):
        head_of(model)


@pytest.mark.parametrize("hold", [lambda m: LocalTeacher(m), lambda m: Distiller(m, 1.0 * CrossEntropy())])
def test_teachers_and_students_of_pythons_users_are_asked_too(hold):
    with pytest.raises(ModelError, match="makes other logits"):
        hold(changed(lambda z, c: z.abs()))


def test_the_proof_is_asked_once_and_leaves_the_model_as_it_was():
    model = tiny_model("GPT-2").train()
    model.transformer.h[0].eval()
    state, modes, generator = (
        copy.deepcopy(model.state_dict()), [module.training for module in model.modules()], torch.get_rng_state(),
    )  # fmt: skip
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    head_of(model)
    head_of(copy.deepcopy(model))  # a copy is known too
    assert len(calls) == 1
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["Qwen3", "Gemma 2", "Granite", "Cohere", "Mixtral", "Falcon-H1", "Mamba"])
def test_sixteen_bits_are_proven_too(name):
    exact, model = head_of(tiny_model(name)), tiny_model(name).bfloat16()
    head = head_of(model)
    assert (head.scale, head.softcap) == (exact.scale, exact.softcap)


def test_an_adapter_on_the_head_is_refused():
    peft = pytest.importorskip("peft", reason="the extra gakd[lora]")
    for settings in ({"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}):
        adapted = peft.get_peft_model(tiny_model("Llama"), peft.LoraConfig(r=2, **settings))
        with pytest.raises(ModelError, match="an adapter on its head"):
            head_of(adapted)


def test_lora_does_not_hide_the_head():
    pytest.importorskip("peft", reason="the extra gakd[lora]")
    assert head_of(add_lora(tiny_model("Granite"), 4, 8, 0.0)).scale == head_of(tiny_model("Granite")).scale


# ---- text ----


@pytest.mark.parametrize(
    ("name", "writing"),
    [
        ("Qwen3", Writing(one_length=False, cached=True)),
        ("RWKV", Writing(one_length=True, cached=True)),
        ("Llama 4 (text)", Writing(one_length=True, cached=True)),
        ("MiniMax", Writing(one_length=False, cached=False)),
    ],
)
def test_how_a_model_writes_is_found_by_asking(name, writing):
    model = tiny_model(name)
    own = model.generation_config
    assert prove_writing(model) == writing
    assert model.generation_config is own


def test_a_model_whose_text_is_not_its_own_is_refused():
    with pytest.raises(ModelError, match=r"^XLMWithLMHeadModel writes by transformers' generate something else"):
        prove_writing(tiny_model("XLM"))


def test_text_logits_tell_models_apart_and_are_the_models_own():
    model = tiny_model("Qwen3")
    found: Tensor = text_logits(model)
    assert found.dtype == torch.float64
    assert torch.equal(found, text_logits(copy.deepcopy(model)))
    assert not torch.allclose(found, text_logits(tiny_model("Qwen3", seed=1)), atol=0.1)
    assert isinstance(two_rows(), Batch)


def test_a_scale_that_no_configuration_names_is_taken_only_where_nothing_could_train_it():
    model = changed(lambda z, c: z * 1.2345)
    assert head_of(model).scale == pytest.approx(1.2345, rel=1e-6)
    trained = changed(lambda z, c: z * 1.2345)
    trained.logit_scale = nn.Parameter(torch.tensor(1.2345))
    with pytest.raises(ModelError, match="makes other logits of its hidden states"):
        head_of(trained)
