"""The routers' auxiliary loss: transformers' own of each sequence, whatever shares its batch."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from gakd import Batch, CrossEntropy, Distiller, RouterBalance, router_balance
from gakd.models.loading import checkpoint_activations
from gakd.objective import Counts
from tests.architecture_table import gradient_of, two_rows
from tests.architectures import tiny_config, tiny_model

MIXTURES = ["Mixtral", "Qwen3-MoE", "gpt-oss", "Jamba"]


def asking(name: str = "Mixtral", coefficient: float = 0.05) -> Any:
    model = tiny_model(name)
    text = model.config.get_text_config()
    text.output_router_logits, text.router_aux_loss_coef = True, coefficient
    model.router_aux_loss_coef = coefficient  # it was read when the model was built
    return model


def single(batch: Batch, row: int) -> Batch:
    return Batch.of(batch.input_ids[[row]], batch.attention_mask[[row]], batch.labels[[row]])


def output_of(model, batch: Batch, sequences: int = 2, tokens: int | None = None):
    objective = 1.0 * CrossEntropy() + router_balance(model)
    counts = Counts(len(batch.rows_N) if tokens is None else tokens, sequences)
    return Distiller(model, objective).eval()(batch, None, objective.coefficients(0, counts))


def own(model, batch: Batch) -> torch.Tensor:
    """Transformers' auxiliary loss of a batch."""
    routers = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_router_logits=True
    ).router_logits
    text = model.config.get_text_config()
    return load_balancing_loss_func(
        tuple(logits for logits in routers if logits is not None), routers[-1].shape[-1], text.num_experts_per_tok,
        batch.attention_mask,
    )  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_it_is_transformers_own_of_each_sequence(name):
    model, batch = asking(name), two_rows()
    found = output_of(model, batch).token_losses["router_balance"]
    expected = torch.stack([own(model, single(batch, row)) for row in range(2)])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_sequence_alone_has_the_loss_that_the_model_gives_itself():
    """Mixtral with `output_router_logits`: cross entropy and the balance, each as its configuration weighs it."""
    model = asking(coefficient=0.3)
    ids = torch.randint(3, 90, (1, 9), generator=torch.Generator().manual_seed(1))
    theirs = model(input_ids=ids, labels=ids)
    assert theirs.aux_loss is not None
    labels = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], 1)
    ours = output_of(model, Batch.of(ids, torch.ones_like(ids), labels), sequences=1)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    ours.loss.backward()
    found = gradient_of(model)
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(found, gradient_of(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_does_not_depend_on_micro_batches_or_padding(checkpointing):
    batch, whole = two_rows(), asking(coefficient=2.0)
    apart = copy.deepcopy(whole)
    if checkpointing:
        checkpoint_activations(apart)
        apart.train()
    output_of(whole, batch).loss.backward()
    for row in range(2):
        short = single(batch, row)
        length = int(short.attention_mask.sum())  # without the padding that the longer row brings
        short = Batch.of(short.input_ids[:, :length], short.attention_mask[:, :length], short.labels[:, :length])
        objective = 1.0 * CrossEntropy() + router_balance(apart)
        coefficients = objective.coefficients(0, Counts(len(batch.rows_N), 2))
        Distiller(apart, objective)(short, None, coefficients).loss.backward()
    assert gradient_of(whole).norm() > 0.1
    torch.testing.assert_close(gradient_of(apart), gradient_of(whole), rtol=1e-4, atol=1e-5)


def test_the_balance_reaches_the_routers():
    model, batch = asking(), two_rows()
    objective = 1.0 * RouterBalance()
    coefficients = objective.coefficients(0, Counts(len(batch.rows_N), 2))
    Distiller(model, objective).eval()(batch, None, coefficients).loss.backward()
    routers = [parameter.grad for name, parameter in model.named_parameters() if ".gate." in name]
    assert len(routers) == 4
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in routers)


def test_a_recipe_adds_it_where_the_configuration_asks():
    assert str(router_balance(asking())) == "0.05 * router_balance"
    assert str(router_balance(asking(), 0.2)) == "0.2 * router_balance"
    assert str(router_balance(asking(), 0.0)) == "0 * router_balance"
    assert str(router_balance(tiny_model("Mixtral"))) == ""
    assert str(router_balance(tiny_model("Mixtral"), 0.1)) == "0.1 * router_balance"
    assert str(router_balance(tiny_model("Qwen3"))) == ""
    unnamed = SimpleNamespace(get_text_config=lambda: SimpleNamespace(output_router_logits=True))
    with pytest.raises(ValueError, match="names no weight of it: give --router-balance-weight"):
        router_balance(SimpleNamespace(config=unnamed))


def test_an_objective_without_it_is_warned_of_and_a_dense_student_refused():
    with pytest.warns(UserWarning, match=r"asks for a balance of its routers .* add router_balance\(student\)"):
        Distiller(asking(), 1.0 * CrossEntropy())
    model, batch = tiny_model("Qwen3"), two_rows()
    objective = 1.0 * RouterBalance(top_k=2)
    with pytest.raises(ValueError, match="RouterBalance needs a mixture of experts"):
        Distiller(model, objective)(batch, None, objective.coefficients(0, Counts(len(batch.rows_N), 2)))


def test_switched_off_it_costs_nothing_and_is_not_logged():
    model, batch = asking(), two_rows()
    objective = 1.0 * CrossEntropy() + router_balance(model, 0.0)
    output = Distiller(model, objective)(batch, None, objective.coefficients(0, Counts(len(batch.rows_N), 2)))
    assert set(output.token_losses) == {"cross_entropy"}
    assert tiny_config("Mixtral").output_router_logits is False
