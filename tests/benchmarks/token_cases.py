"""Token terms: hidden states and head weights in, gradients of both out, for 0.5 CE + 0.5 D, D alone or CE alone.

All implementations get the same rows; where only some are supervised, ours works on those, and the floor and the peers
that mask at the end on all. The floor is just the matrix products: student logits, dH, dW, teacher logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from tests.benchmarks import peers
from tests.benchmarks.formulas import FORMULAS
from tests.benchmarks.work import Work, normal, working_dtype

TERMS: dict[str, tuple[tuple[str, tuple[float, ...]], ...]] = {
    "cross_entropy": (),
    "forward_kl": (("ForwardKL", ()),),
    "reverse_kl": (("ReverseKL", ()),),
    "jensen_shannon": (("JensenShannon", (0.5,)),),
    "symmetric_kl": (("ForwardKL", ()), ("ReverseKL", ())),
    "skew_forward_kl": (("SkewForwardKL", (0.1,)),),
    "skew_reverse_kl": (("SkewReverseKL", (0.1,)),),
    "adaptive_kl": (("AdaptiveKL", (0.5,)),),
    "alpha_beta": (("AlphaBeta", (0.5, 0.5)),),
    "total_variation": (("TotalVariation", ()),),
}


@dataclass
class Inputs:
    hidden_NH: Tensor  # a leaf
    weight_VH: Tensor  # a leaf
    teacher_hidden_NH: Tensor
    teacher_weight_VH: Tensor
    labels_N: Tensor  # -100 on rows that are not supervised
    divergence: str
    weights: tuple[float, float]  # of cross entropy and of the divergence; a zero one is not computed

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden_NH, self.weight_VH

    def weighted(self, hard: Callable[[], Tensor], soft: Callable[[], Tensor]) -> Tensor:
        """The weighted sum, without what weighs nothing."""
        parts = [w * part() for w, part in zip(self.weights, (hard, soft), strict=True) if w]
        return sum(parts[1:], parts[0])


def build(parameters: dict[str, Any], implementation: str, device: torch.device) -> Work:
    inputs = _inputs(parameters, device)
    if implementation == "floor":
        return _floor(inputs)
    if implementation == "unfused":
        return _work(inputs, lambda: _unfused(inputs))
    if implementation.startswith("ours"):
        return _ours(inputs, parameters, frozen=implementation.endswith("frozen"))
    step, warm_ups = peers.step(implementation, inputs)
    return _work(inputs, step, warm_ups)


def _inputs(parameters: dict[str, Any], device: torch.device) -> Inputs:
    rows, vocabulary = parameters["rows"], parameters["vocabulary"]
    options = {"device": device, "dtype": working_dtype(device)}

    def side(width: int, seed: int) -> tuple[Tensor, Tensor]:  # logits of standard deviation 2
        return normal(rows, width, scale=1.0, seed=seed, **options), normal(
            vocabulary, width, scale=2.0 * width**-0.5, seed=seed + 1, **options
        )

    hidden_NH, weight_VH = side(parameters["student_width"], 0)
    teacher_hidden_NH, teacher_weight_VH = side(parameters["teacher_width"], 2)
    generator = torch.Generator(device).manual_seed(4)
    labels_N = torch.randint(vocabulary, (rows,), generator=generator, device=device)
    supervised = torch.rand(rows, generator=generator, device=device).argsort() < round(parameters["supervised"] * rows)
    labels_N[~supervised] = -100
    alone = parameters["divergence"] == "cross_entropy"
    weights = (1.0, 0.0) if alone else (0.5, 0.5) if parameters["cross_entropy"] else (0.0, 1.0)
    return Inputs(
        hidden_NH.requires_grad_(), weight_VH.requires_grad_(), teacher_hidden_NH, teacher_weight_VH, labels_N,
        parameters["divergence"], weights,
    )  # fmt: skip


def _work(inputs: Inputs, step: Callable[[], Tensor], warm_ups: int = 1) -> Work:
    def iterate() -> Tensor:
        loss = step()
        loss.backward()
        return loss.detach()

    return Work(iterate, inputs.leaves, inputs.hidden_NH, warm_ups)


def _floor(inputs: Inputs) -> Work:
    """The necessary matrix products into buffers that are there already."""
    with torch.no_grad():
        hidden_NH, weight_VH = (leaf.detach() for leaf in inputs.leaves)
        logits_NV = hidden_NH @ weight_VH.T
        teacher_logits_NV = torch.ones_like(logits_NV) if inputs.weights[1] else None
        hidden_gradient, weight_gradient = torch.ones_like(hidden_NH), torch.ones_like(weight_VH)

    @torch.no_grad()
    def iterate() -> None:
        torch.mm(hidden_NH, weight_VH.T, out=logits_NV)
        if teacher_logits_NV is not None:
            torch.mm(inputs.teacher_hidden_NH, inputs.teacher_weight_VH.T, out=teacher_logits_NV)
        torch.mm(logits_NV, weight_VH, out=hidden_gradient)
        torch.mm(logits_NV.T, hidden_NH, out=weight_gradient)

    return Work(iterate)


def _ours(inputs: Inputs, parameters: dict[str, Any], frozen: bool) -> Work:
    from gakd.losses import divergences, token_pass
    from gakd.types import Head, TeacherOutput

    inputs.weight_VH.requires_grad_(not frozen)
    count = int((inputs.labels_N != -100).sum())
    hard, soft = inputs.weights
    wanted = TERMS[inputs.divergence]
    if missing := [name for name, _ in wanted if not hasattr(divergences, name)]:
        raise NotImplementedError(f"gakd has no {', '.join(missing)} yet")
    soft_terms = [getattr(divergences, name)(*arguments) for name, arguments in wanted]
    terms = [divergences.CrossEntropy()] * (hard > 0) + soft_terms
    coefficients = {term.name: soft / len(soft_terms) / count for term in soft_terms}
    coefficients["cross_entropy"] = hard / count
    rows_N = (inputs.labels_N != -100).nonzero().squeeze(-1)
    everything = count == len(inputs.labels_N)

    def step() -> Tensor:
        hidden_NH, labels_N, teacher_NH = inputs.hidden_NH, inputs.labels_N, inputs.teacher_hidden_NH
        if not everything:  # the backbone's rows are gathered, which is part of the work
            hidden_NH, labels_N, teacher_NH = hidden_NH[rows_N], labels_N[rows_N], teacher_NH[rows_N]
        teacher = TeacherOutput(teacher_NH, Head(inputs.teacher_weight_VH))
        return token_pass(hidden_NH, Head(inputs.weight_VH), labels_N, terms, coefficients, teacher)[0]

    return _work(inputs, step)


def _unfused(inputs: Inputs) -> Tensor:
    """All logits of both models, as the release of GAKD forms them, then the formula in fp32, then the mask."""
    student = linear(inputs.hidden_NH, inputs.weight_VH).float()
    mask = inputs.labels_N != -100

    def soft() -> Tensor:
        with torch.no_grad():
            teacher = linear(inputs.teacher_hidden_NH, inputs.teacher_weight_VH).float()
        return (FORMULAS[inputs.divergence](student, teacher) * mask).sum() / mask.sum()

    return inputs.weighted(lambda: cross_entropy(student, inputs.labels_N), soft)
