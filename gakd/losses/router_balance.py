"""Load balancing of a mixture of experts: that its routers keep on using all experts while it is trained on something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from gakd.objective import Objective, Term

_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")  # what configurations call it


class RouterBalance(Term):
    """The routers' auxiliary loss, per sequence: `E sum_e f_e P_e`.

    Over the tokens of a sequence, prompt included, and all layers that route: `f_e` is how often expert e is among the `top_k`
    chosen, `P_e` the sum of its probabilities, both over the number of tokens times layers; f carries no gradient. It is
    `top_k` where all experts are used alike.

    Transformers' own (Switch Transformer, arXiv 2101.03961, equations 4 to 6) of a batch of that one sequence. Over several
    sequences theirs depends on which share a batch, so on the micro-batch size; this does not, as DeepSeek-V3's does not
    (arXiv 2412.19437, equations 17 to 20).

    `top_k` None is the number of experts that the student's configuration says a token is sent to.
    """

    name = "router_balance"
    unit: Literal["token", "sequence"] = "sequence"

    def __init__(self, top_k: int | None = None, name: str | None = None) -> None:
        self.top_k = top_k
        if name is not None:
            self.name = name

    def losses(self, router_logits: Sequence[Tensor], mask_BT: Tensor, top_k: int | None) -> Tensor:
        """`[B]`, from each routing layer's logits (`[B T, E]`, as transformers returns them) and 1 where a token is.

        ValueError where there are none, and where neither the term nor the student's configuration has a `top_k`.
        """
        top_k = self.top_k or top_k
        if not router_logits:
            raise ValueError("the student returns no router logits: RouterBalance needs a mixture of experts")
        if top_k is None:
            raise ValueError("the student's configuration names no experts per token: give RouterBalance(top_k=...)")
        logits_LBTE = [logits.float().view(*mask_BT.shape, -1) for logits in router_logits]
        chosen_BE, probability_BE = 0.0, 0.0
        for logits_BTE in logits_LBTE:
            probs_BTE = logits_BTE.softmax(-1) * mask_BT.unsqueeze(-1)
            top_BTK = logits_BTE.topk(top_k, dim=-1).indices
            hits_BTE = logits_BTE.new_zeros(logits_BTE.shape).scatter_(-1, top_BTK, 1.0) * mask_BT.unsqueeze(-1)
            chosen_BE, probability_BE = chosen_BE + hits_BTE.sum(1), probability_BE + probs_BTE.sum(1)
        places_B1 = len(logits_LBTE) * mask_BT.sum(1, keepdim=True).clamp_min(1)
        return logits_LBTE[0].shape[-1] * (chosen_BE / places_B1 * (probability_BE / places_B1)).sum(-1)


def router_balance(student: nn.Module, weight: float | None = None) -> Objective:
    """What a recipe adds to its objective: `weight * RouterBalance()`, or nothing.

    `weight` None is the coefficient of the student's configuration where that asks for the loss (`output_router_logits`), else
    nothing. Raises ValueError where it asks and names no coefficient.
    """
    text: Any = student.config.get_text_config()  # type: ignore[union-attr,operator]
    if weight is None:
        if not asks_for_balance(student):
            return Objective(())
        weight = next((getattr(text, name) for name in _WEIGHTS if getattr(text, name, None) is not None), None)
        if weight is None:
            raise ValueError(
                "the student's configuration asks for a balance of its routers (output_router_logits) and names no weight of it: "
                "give --router-balance-weight"
            )
    return weight * RouterBalance() if weight or asks_for_balance(student) else Objective(())


def asks_for_balance(student: nn.Module) -> bool:
    """Whether a model's own loss has the term, by its configuration."""
    return bool(getattr(student.config.get_text_config(), "output_router_logits", False))  # type: ignore[union-attr,operator]
