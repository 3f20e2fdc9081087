"""The module that Fabric wraps: student backbone, supervised rows, fused token terms and readouts, in one forward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gakd.adversary.adversarial import Adversarial
from gakd.losses.checks import of_sequences, of_tokens
from gakd.losses.divergences import CrossEntropy
from gakd.losses.fused import token_pass, token_values
from gakd.losses.policy_gradient import SampledTokenLoss
from gakd.losses.router_balance import RouterBalance, asks_for_balance
from gakd.losses.row_pass import Kernel
from gakd.losses.sequence_term import SequenceRows, sequence_pass
from gakd.losses.term import TokenTerm
from gakd.models.heads import head_of, hidden_rows
from gakd.models.lora import base_of
from gakd.models.mode import switch_off_dropout
from gakd.models.parts import backbone_of, experts_per_token, routed_rows
from gakd.models.sharding import inside
from gakd.objective import Coefficients, Objective, Term, as_objective
from gakd.types import Batch, StudentOutput, StudentRows, TeacherOutput, check_batch
from gakd.weights import Balanced


class Distiller(nn.Module):
    """A student and the objective it is trained on.

    Everything that needs the student's head happens inside `forward`, because a sharded head outside it is a fragment.
    The adversary is held, not owned: it stays outside the wrapper, replicated and in fp32. Sequence terms that are modules are
    owned: their parameters train with the student's. `objective` may be a term alone, or a list of terms to sum; `.objective`
    is their sum. Raises TypeError for a term that could not be asked for its losses, ValueError for two adversaries.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective | Term | Sequence[Objective | Term],
        chunk_rows: int | None = None,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        self.objective = objective = as_objective(objective)
        if not objective.terms:
            raise ValueError("an objective needs a term, got none: 0.5 * CrossEntropy() + 0.5 * ReverseKL(), say")
        self.student = student
        head_of(student)  # proven before it is wrapped, and cut over ranks
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows is a number of rows, at least 1, or None for the default, got {chunk_rows}")
        self.chunk_rows = chunk_rows
        self.kernel: Kernel = kernel
        for term in objective:
            if term.unit == "token":
                of_tokens(term)
        self._balances = [term for term in objective if isinstance(term, RouterBalance)]
        others = [term for term in objective if not isinstance(term, Adversarial | RouterBalance)]
        self._sequence_terms = tuple(of_sequences(term) for term in others if term.unit == "sequence")
        self.sequence_modules = nn.ModuleList(term for term in self._sequence_terms if isinstance(term, nn.Module))
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
        if not self._balances and asks_for_balance(student):
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
        """TypeError for arguments of another kind, ValueError for coefficients of another objective."""
        check_batch(batch)
        if teacher is not None and not isinstance(teacher, TeacherOutput):
            raise TypeError(
                f"the distiller takes what a teacher says of the batch, teacher(batch), got {type(teacher).__name__}"
            )
        if not isinstance(coefficients, Coefficients):
            got = type(coefficients).__name__
            raise TypeError(f"the distiller takes objective.coefficients(step, counts), got {got}")
        if missing := {term.name for term in self.objective} - coefficients.terms.keys():
            raise ValueError(f"the coefficients are of another objective: they lack {sorted(missing)[0]}")
        return inside(base_of(self.student), self._forward, batch, teacher, coefficients)

    def _forward(self, batch: Batch, teacher: TeacherOutput | None, coefficients: Coefficients) -> StudentOutput:
        balances = [term for term in self._balances if coefficients.terms[term.name] != 0]
        routers: tuple[Tensor, ...] = ()
        if not balances:
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
        terms = [cast(TokenTerm, term.at(coefficients.step)) for term in self.objective if term.unit == "token"]
        tokens = token_pass(
            token_NH, head, batch.labels_N, terms, coefficients.terms, teacher, self.chunk_rows, self.kernel,
            normalizers=readout is not None and readout.needs_log_normalizers, row_values=batch.row_values,
        )  # fmt: skip
        rows, loss, losses = None, tokens.loss, tokens.losses
        if self._sequence_terms:
            seen = SequenceRows(hidden_NH, head, teacher, batch)
            of_sequences_loss, sequence_losses = sequence_pass(self._sequence_terms, coefficients.terms, seen)
            loss, losses = loss + of_sequences_loss, losses | sequence_losses
        for balance in balances:
            losses_B = balance.losses(routers, batch.attention_mask, experts_per_token(base_of(self.student)))
            loss = loss + coefficients.terms[balance.name] * losses_B.sum()
            losses = losses | {balance.name: losses_B.detach()}
        if readout is None and self.student_map is not None:
            # Data-parallel backends wait for a gradient of every parameter, of those that do not play yet, too.
            loss = loss + sum(0.0 * parameter.sum() for parameter in self.student_map.parameters())
        if readout is not None:
            live_NR = readout.live(live_NH, head, coefficients.step_rows, tokens.log_normalizers_N)
            if player is not None and self.training and torch.is_grad_enabled():
                player.expect_play()
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
