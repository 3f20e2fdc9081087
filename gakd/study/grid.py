"""What is compared: each method is a recipe and the flags that make it what it is, a row of a plain tuple."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gakd.errors import InputError
from gakd.study.flag_sets import FlagSets, share

REFERENCE = "reverse_kl"  # the method that all others are compared with: GAKD without its adversary
VARIED = "gakd"  # the method that the rows which are no headlines change one thing of
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


class Method(NamedTuple):
    """One row of the study."""

    name: str
    label: str
    recipe: str  # relative to the folder of recipes
    flags: tuple[str, ...] = ()
    headline: bool = False  # runs with all seeds, at a learning rate of its own
    cost: float = 1.0  # seconds of a run over those of reverse KL's, about: for the order of runs and the time left
    cached: bool = True  # can learn from a teacher cache: all its text is the dataset's
    control: str = ""  # the method that differs from this one in one thing, where that is not the reference

    @property
    def compared(self) -> str:
        """The method that differs from this one in one thing: GAKD, for a variant that names no other."""
        return self.control or ("" if self.headline else VARIED)


def methods(steps: int, longest_response: int, student: Path) -> tuple[Method, ...]:
    """All methods, at a budget of optimizer `steps`; `student` is where they start from.

    Terms per token weigh 0.5 beside 0.5 cross entropy wherever the recipe has both, so that no row differs from another by
    the weight of its cross entropy. MiniLLM makes four updates on each step's text, so it takes a quarter of the steps.
    """
    flags = FlagSets.of(steps, longest_response)
    game, own, taught, alone = flags.game, flags.own, flags.taught, flags.alone
    half = ("--cross-entropy-weight", "0.5", "--skew-reverse-kl-weight", "0.5")
    wide, gentle = (*game, "--discriminator-width", "256"), (*game, *flags.slow)
    # What a search on the validation split found best (knobs.py).
    of_probabilities = (*game, *flags.light, *share(0.3))
    of_log_probs = (*game, *share(0.1))
    return (
        Method("sft", "SFT", "baselines/sft.py", (), True, 0.8),
        Method("seqkd", "SeqKD", "baselines/seqkd.py", taught, True, 3.5, cached=False),
        Method("forward_kl", "forward KL", "baselines/forward_kl.py", (), True),
        Method(REFERENCE, "reverse KL", "baselines/reverse_kl.py", (), True),
        Method("reverse_kl_alone", "reverse KL, no CE", "baselines/reverse_kl.py", alone, True),
        Method("jensen_shannon", "JSD", "baselines/jensen_shannon.py", (), True),
        Method("skew_reverse_kl", "skew reverse KL", "baselines/skew_reverse_kl.py", half, True),
        Method("gkd", "GKD", "baselines/gkd.py", own, True, 3, cached=False),
        Method(
            "minillm", "MiniLLM", "baselines/minillm.py",
            (*own, "--updates", "4", "--steps", str(max(steps // 4, 1))), True, 2,
            cached=False,
        ),
        Method("distillm", "DistiLLM", "baselines/distillm.py", (*own, "--initial-threshold", "0.5"), True, 2, cached=False),
        Method(VARIED, "GAKD", "gakd.py", game, True, 2),
        Method("gakd_probabilities", "GAKD, probabilities", "ablations/gakd_probabilities.py", of_probabilities, True, 2.4),
        Method(
            "gakd_probabilities_alone", "GAKD, probabilities, no CE", "ablations/gakd_probabilities.py",
            (*of_probabilities, *alone), True, 2.4, control="reverse_kl_alone",
        ),
        Method(
            "gakd_late_alone", "GAKD, last fifth, no CE", "gakd.py", (*flags.late, *alone, *share(0.1)), True, 1.3,
            control="reverse_kl_alone",
        ),
        Method("gakd_weight_0", "GAKD, weight 0", "baselines/reverse_kl.py"),
        Method("gakd_weight_0.02", "GAKD, weight 0.02", "gakd.py", (*game, "--adversarial-weight", "0.02"), False, 2),
        Method("gakd_weight_0.5", "GAKD, weight 0.5", "gakd.py", (*game, "--adversarial-weight", "0.5"), False, 2),
        Method("gakd_late", "GAKD, last fifth only", "gakd.py", flags.late, False, 1.3),
        Method("gakd_wide", "GAKD, wide discriminator", "gakd.py", wide, False, 6),
        Method("gakd_gentle", "GAKD, gentle", "gakd.py", gentle, False, 2),
        Method("gakd_no_penalty", "GAKD, no penalty", "ablations/gakd_no_penalty.py", game, False, 2),
        Method("gakd_no_kl", "GAKD, no KL", "ablations/gakd_no_kl.py", game, False, 2),
        Method("gakd_forward_kl", "GAKD, forward KL", "ablations/gakd_forward_kl.py", game, False, 2),
        Method("gakd_gan", "GAKD, non-saturating", "ablations/gakd_gan.py", game, False, 2),
        Method("gakd_hinge", "GAKD, hinge", "ablations/gakd_hinge.py", game, False, 2),
        Method("gakd_wgan", "GAKD, Wasserstein", "ablations/gakd_wgan.py", game, False, 2),
        Method("gakd_raw_logits", "GAKD, raw logits", "ablations/gakd_raw_logits.py", game, False, 2),
        Method("gakd_log_probs", "GAKD, log-probs", "ablations/gakd_log_probs.py", of_log_probs, False, 2.4),
        Method("gakd_mlp", "GAKD, MLP", "ablations/gakd_mlp_discriminator.py", flags.order_blind, False, 1.5),
        Method(
            "gakd_teacher_text", "GAKD, teacher text", "ablations/gakd_teacher_text.py", (*game, *taught), False, 5,
            cached=False,
        ),
        Method(
            "gakd_on_policy", "GAKD, own text", "ablations/gakd_on_policy.py", (*game, *own), False, 4, cached=False,
            control="reverse_kl_own_text",
        ),
        Method(
            "reverse_kl_own_text", "reverse KL, own text", "ablations/gakd_on_policy.py",
            (*game, *own, "--adversarial-weight", "0"), False, 3, cached=False, control="gakd_weight_0",
        ),
        Method(
            "released", "GAKD, as released", "ablations/released.py",
            ("--discriminator", str(student), "--adversarial-start", str(max(steps // 10, 1))), False, 3, cached=False,
        ),
    )  # fmt: skip


def chosen(grid: Sequence[Method], names: Sequence[str]) -> list[Method]:
    """The named methods in the grid's order, with what they are compared with and what they vary; no names: all."""
    known = [method.name for method in grid]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise InputError(
                f"no method {name!r}{f', did you mean {close[0]!r}?' if close else ''}: give {', '.join(known)}"
            )
    wanted = {*names, REFERENCE, *(method.control for method in grid if method.name in names and method.control)}
    if any(method.name in wanted and not method.headline for method in grid):
        wanted.add(VARIED)
    return [method for method in grid if not names or method.name in wanted]
