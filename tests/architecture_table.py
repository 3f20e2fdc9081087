"""The table of docs/models.md, made by trying each architecture: `python -m tests.architecture_table` writes it anew.

What is tried is asserted against transformers' own forward, so a row is written only where nothing is wrong without a word.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gakd import Batch, CrossEntropy, Distiller, LocalTeacher, ReverseKL
from gakd.errors import InputError
from gakd.models import add_lora, head_of, hidden_rows, load_model, prune_layers, write_folder
from gakd.models.lora import base_of, linear_layers
from gakd.models.parts import backbone_of, decoder_layers, idle_parameters
from gakd.models.rehearsal import prove_student
from gakd.objective import Counts
from gakd.samplers.config import Sampling
from gakd.samplers.generation import generate
from gakd.samplers.writing import writing_of
from tests.architectures import ARCHITECTURES, ASKS_FOR_VALUES, tiny_model
from tests.recipe_table import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by python -m tests.architecture_table -->", "<!-- end of what is made -->"
HEAD = "| architecture | distils | LoRA on | prunes | plans | notes |\n| --- | --- | --- | --- | --- | --- |"
FIRST, LAST = 3, 89  # token ids that mean nothing special to any of the models


class Row(NamedTuple):
    """What is possible with an architecture; a reason where it is not."""

    distils: str
    lora: str = ""
    prunes: str = ""
    plans: str = ""
    notes: str = ""


def examine(name: str) -> Row:
    """Tries everything; AssertionError where something is wrong and nothing said so."""
    model = tiny_model(name)
    notes = []
    if refused := _refusal(lambda: head_of(model)):
        return Row(f"no: {refused}")
    if idle := idle_parameters(model):
        notes.append("text alone; its towers are frozen and kept")
        for parameter in idle.values():
            parameter.requires_grad_(False)
    check_logits(model)
    check_step(model, tiny_model(name, seed=1))
    if refused := _refusal(lambda: check_text(model)):
        notes.append(refused)
    else:
        one_length, cached = writing_of(model)
        notes += ["writes to prompts of one length at a time"] if one_length else []
        notes += [] if cached else ["writes without a cache"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_folder(model, tokenizer(), scratch + "/student")
        if refused := _refusal(lambda: check_reload(model, folder)):
            notes.append(f"not from a folder: {refused}")
    plans = (
        "no: its forward asks for values" if name in ASKS_FOR_VALUES else "yes"
    )  # tests/planning/test_architectures.py
    return Row("yes", _lora(name), _prunes(name), plans, "; ".join(notes))


def row_text(name: str, row: Row) -> str:
    return f"| {' | '.join((name, *row))} |".replace("  ", " ")


def check_logits(model: nn.Module) -> None:
    """Rows through the head against the model's own logits."""
    batch = two_rows()
    with torch.no_grad():
        found = head_of(model).logits(hidden_rows(model, batch))
        torch.testing.assert_close(found, own_logits(model, batch), rtol=1e-4, atol=1e-4)


def check_step(student: nn.Module, teacher: PreTrainedModel) -> None:
    """Losses and gradients of cross entropy + reverse KL against autograd through both models' own logits."""
    own, batch = copy.deepcopy(student), two_rows()
    objective = 1.0 * CrossEntropy() + 1.0 * ReverseKL()
    coefficients = objective.coefficients(0, Counts(tokens=len(batch.rows_N), sequences=2))
    output = Distiller(student, objective).eval()(batch, LocalTeacher(teacher)(batch), coefficients)
    output.loss.backward()
    log_q, log_p = (own_logits(model, batch).double().log_softmax(-1) for model in (own, teacher))
    cross_entropy = -log_q.gather(1, batch.labels_N[:, None])[:, 0]
    reverse_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    (cross_entropy + reverse_kl).mean().backward()
    for name, expected in (("cross_entropy", cross_entropy), ("reverse_kl", reverse_kl)):
        torch.testing.assert_close(output.token_losses[name].double(), expected.detach(), rtol=1e-4, atol=1e-4)
    gradients = gradient_of(student), gradient_of(own)
    apart = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    assert apart < 1e-3, f"gradients differ by {apart:.2g}"
    student.zero_grad(set_to_none=True)


def check_text(model: PreTrainedModel) -> int:
    """Greedy responses to prompts of different lengths at once: those of each prompt alone, without a cache. Counts tokens."""
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]
    words, sampling, checked = tokenizer(), Sampling(max_new_tokens=5, temperature=0), 0
    for prompt, generation in zip(prompts, generate(model, words, prompts, sampling), strict=True):
        ids = list(prompt)
        for token in generation.response_ids:
            with torch.no_grad():
                following = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert following[token] >= following.max() - 1e-3, "a greedy text is not the model's"
            ids.append(token)
            checked += 1
    return checked


def check_reload(model: PreTrainedModel, folder: Path) -> None:
    loaded, batch = load_model(str(folder)), two_rows()
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(own_logits(loaded, batch), own_logits(model, batch), rtol=1e-4, atol=1e-4)


def _lora(name: str) -> str:
    model = tiny_model(name)
    wanted = len(linear_layers(model))
    linear = sum(isinstance(module, nn.Linear) for module in backbone_of(model).modules())
    adapted = add_lora(model, 4, 8, 0.0)
    if refused := _refusal(lambda: prove_student(adapted)):
        return f"no: {refused}"
    trained = [parameter for own, parameter in adapted.named_parameters() if "lora_B" in own]
    assert len(trained) == wanted
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(std=0.05)
    check_step(adapted, tiny_model(name, seed=1))
    experts = "; not its experts" if _has_experts(base_of(adapted)) else ""
    return f"{wanted} of {max(linear, wanted)}{experts}"


def _prunes(name: str) -> str:
    model = tiny_model(name)

    def prune() -> None:
        depth = len(decoder_layers(model))
        pruned = prune_layers(model, [depth // 2])
        check_logits(pruned)
        prove_student(pruned)
        check_step(pruned, tiny_model(name, seed=1))

    refused = _refusal(prune)
    return f"no: {refused}" if refused else "yes"


def _has_experts(model: nn.Module) -> bool:
    return any(parameter.ndim == 3 and "expert" in name for name, parameter in model.named_parameters())


def _refusal(attempt: Callable[[], object]) -> str:
    """What an attempt was refused for, without the class's name and the remedy; empty where it succeeds."""
    try:
        attempt()
    except InputError as error:
        reason = re.sub(
            r"^(what is exported of \S+ is not what was trained:|\S+( cannot be pruned to these layers:)?) ",
            "",
            str(error),
        )
        return plain(reason.partition(";")[0])
    return ""


def plain(reason: str) -> str:
    """A reason without what rounding or chance decide: how far apart logits are, digits behind the third."""
    reason = re.sub(r",? \(?relative difference [\d.e+-]+( at best)?\)?", "", reason)
    return re.sub(r"\d+\.\d+", lambda number: format(float(number.group()), ".3g"), reason)


def two_rows() -> Batch:
    """Two right-padded sequences of different lengths, their prompts not supervised."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST, LAST, (2, 13), generator=generator)
    mask, labels = torch.ones_like(ids), torch.roll(ids, -1, 1)
    mask[1, 9:], ids[1, 9:] = 0, FIRST
    labels[:, :3], labels[0, 12], labels[1, 8:] = -100, -100, -100
    return Batch.of(ids, mask, labels)


def own_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own logits of the supervised rows."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.flatten(0, 1)[batch.rows_N]


def gradient_of(model: nn.Module) -> Tensor:
    parts = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    return torch.cat([part.flatten() for part in parts])


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for each id of the tiny models, three of them special."""
    words = {name: index for index, name in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, 97))])}
    backend = Tokenizer(models.WordLevel(vocab=words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def rows_of(text: str) -> dict[str, str]:
    """The page's rows by architecture."""
    lines = [line for line in text.partition(BEGIN)[2].partition(END)[0].splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}


def with_table(text: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} needs the lines {BEGIN} and {END} around the table")
    rows = []
    for name in ARCHITECTURES:
        rows.append(row_text(name, examine(name)))
        print(rows[-1], flush=True)
    return f"{before}{BEGIN}\n\n{HEAD}\n" + "\n".join(rows) + f"\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
