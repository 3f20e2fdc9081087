"""The module that Fabric wraps: student backbone, supervised rows, fused token terms and readouts, in one forward."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn

from gakd.adversary.adversarial import Adversarial
from gakd.losses.divergences import CrossEntropy
from gakd.losses.fused import token_pass, token_values
from gakd.losses.policy_gradient import SampledTokenLoss
from gakd.losses.router_balance import RouterBalance, asks_for_balance
from gakd.losses.row_pass import Kernel
from gakd.losses.term import TokenTerm
from gakd.models.heads import head_of, hidden_rows
from gakd.models.lora import base_of
from gakd.models.mode import switch_off_dropout
from gakd.models.parts import backbone_of, experts_per_token, routed_rows
from gakd.models.sharding import inside
from gakd.objective import Coefficients, Objective
from gakd.types import Batch, StudentOutput, StudentRows, TeacherOutput
from gakd.weights import Balanced


class Distiller(nn.Module):
    """A student and the objective it is trained on.

    Everything that needs the student's head happens inside `forward`, because a sharded head outside it is a fragment.
    The adversary is held, not owned: it stays outside the wrapper, replicated and in fp32.
    """

    def __init__(
        self, student: nn.Module, objective: Objective, chunk_rows: int | None = None, kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        head_of(student)  # proven before it is wrapped, and cut over ranks
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows is a number of rows, at least 1, or None for the default, got {chunk_rows}")
        self.chunk_rows = chunk_rows
        self.kernel: Kernel = kernel
        self._token_terms = cast("list[TokenTerm]", [term for term in objective if term.unit == "token"])
        adversaries = [term for term in objective if isinstance(term, Adversarial)]
        if len(adversaries) > 1:
            raise ValueError(
                f"an objective holds one adversary, got {[term.name for term in adversaries]}: combine them in a discriminator"
            )
        if any(isinstance(term, SampledTokenLoss) for term in objective) and switch_off_dropout(student):
            # Probabilities of a text are taken before its first update: with another dropout no ratio would be 1 there.
            warnings.warn(
                "dropout is off: a policy gradient compares the student with what it was when it wrote, in one mode",
                stacklevel=2,
            )
        self._balance = next((term for term in objective if isinstance(term, RouterBalance)), None)
        if self._balance is None and asks_for_balance(student):
            warnings.warn(
                "the student's configuration asks for a balance of its routers (output_router_logits), the objective has none: "
                "add router_balance(student)",
                stacklevel=2,
            )
        self._adversary = tuple(adversaries)  # a tuple hides the module from registration
        for weight, term in objective.terms:
            if isinstance(term, Adversarial):
                term.weigh(weight)
                term.plays_for(base_of(student))
            elif isinstance(weight, Balanced):
                raise ValueError(f"{weight} weighs an adversary against the token terms, got it for {term.name}")
        # A readout's part that is trained to fool the discriminator: it belongs to the student, whose optimizer has it.
        self.student_map = next((term.readout.student_map for term in adversaries), None)

    def forward(self, batch: Batch, teacher: TeacherOutput | None, coefficients: Coefficients) -> StudentOutput:
        return inside(base_of(self.student), self._forward, batch, teacher, coefficients)

    def _forward(self, batch: Batch, teacher: TeacherOutput | None, coefficients: Coefficients) -> StudentOutput:
        balance = self._balance if self._balance and coefficients.terms[self._balance.name] else None
        routers: tuple[Tensor, ...] = ()
        if balance is None:
            hidden_NH = hidden_rows(self.student, batch)
        else:
            hidden_NH, routers = routed_rows(backbone_of(base_of(self.student)), batch)
        head = head_of(self.student)
        player = next((term for term in self._adversary if coefficients.terms[term.name] != 0), None)
        readout = None if player is None else player.readout
        if player is not None and teacher is not None and not (teacher.shared_vocabulary and teacher.rows is None):
            raise ValueError(
                f"{player.name} compares whole sequences of one tokenizer, got a teacher of another: leave the adversary out, "
                f"or use a teacher of the student's tokenizer"
            )
        token_NH, live_NH = hidden_NH, hidden_NH
        if player is not None and player.balance is not None:
            token_NH, live_NH = player.balance.watch(hidden_NH)
        tokens = token_pass(
            token_NH, head, batch.labels_N, self._token_terms, coefficients.terms, teacher, self.chunk_rows, self.kernel,
            normalizers=readout is not None and readout.needs_log_normalizers, row_values=batch.row_values,
        )  # fmt: skip
        rows, loss, losses = None, tokens.loss, tokens.losses
        if balance is not None:
            losses_B = balance.losses(routers, batch.attention_mask, experts_per_token(base_of(self.student)))
            loss = loss + coefficients.terms[balance.name] * losses_B.sum()
            losses = losses | {balance.name: losses_B.detach()}
        if readout is None and self.student_map is not None:
            # Data-parallel backends wait for a gradient of every parameter, of those that do not play yet, too.
            loss = loss + sum(0.0 * parameter.sum() for parameter in self.student_map.parameters())
        if readout is not None:
            live_NR = readout.live(live_NH, head, coefficients.step_rows, tokens.log_normalizers_N)
            normalizers = tokens.log_normalizers_N, tokens.teacher_log_normalizers_N
            rows = StudentRows(live_NR, hidden_NH.detach(), *normalizers)
        if self.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(
                "nothing of the student trains: a LocalTeacher freezes its model, so student and teacher are two objects; give "
                "the teacher a copy (copy.deepcopy), or unfreeze the student"
            )
        return StudentOutput(loss, losses, rows)

    @torch.no_grad()
    def label_log_probs(self, batch: Batch, teacher: TeacherOutput | None, temperature: float) -> Tensor:
        """The student's log-probabilities of the labels, `[N]`, over its whole head; with a teacher, over what both have.

        A policy gradient is over the whole head; give a teacher for what is compared with its probabilities.
        """
        return inside(base_of(self.student), self._label_log_probs, batch, teacher, temperature)

    def _label_log_probs(self, batch: Batch, teacher: TeacherOutput | None, temperature: float) -> Tensor:
        head, cross_entropy = head_of(self.student), CrossEntropy(temperature, temperature_squared=False)
        if teacher is not None:
            shared = min(head.vocab_size, teacher.head.vocab_size)
            bias = None if head.bias is None else head.bias[:shared]
            head = head._replace(weight=head.weight[:shared], bias=bias)
        values = token_values(
            hidden_rows(self.student, batch), head, batch.labels_N, [cross_entropy], None, self.chunk_rows
        )
        return -values[cross_entropy.name]
