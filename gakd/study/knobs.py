"""What is tried to make the adversary help: its knobs, one after the other, judged on the validation split alone."""

from __future__ import annotations

from gakd.study.flag_sets import FlagSets, share
from gakd.study.grid import REFERENCE, Method

OWN_TEXT, ALONE, ALONE_OWN_TEXT = "own_text", "reverse_kl_alone", "alone_own_text"


def knobs(steps: int, longest_response: int) -> tuple[Method, ...]:
    """All settings that are tried, after the references that they are compared with."""
    game, late, _, slow, light, alone, own, _ = FlagSets.of(steps, longest_response)
    fast = ("--discriminator-learning-rate", "1e-3")
    on_logits, on_log_probs, on_probabilities, on_own_text = (
        f"{name}.py"
        for name in ("gakd", "ablations/gakd_log_probs", "ablations/gakd_probabilities", "ablations/gakd_on_policy")
    )
    rows = [
        Method(REFERENCE, "reverse KL", "baselines/reverse_kl.py"),
        Method(ALONE, "reverse KL, no CE", "baselines/reverse_kl.py", alone),
        Method(OWN_TEXT, "reverse KL, own text", on_own_text, (*game, *own, "--adversarial-weight", "0"), cost=3, cached=False),
        Method(
            ALONE_OWN_TEXT, "reverse KL, no CE, own text", on_own_text, (*game, *own, *alone, "--adversarial-weight", "0"),
            cost=3, cached=False,
        ),
    ]  # fmt: skip
    for value in (0.1, 0.3, 1.0):
        rows += [
            Method(f"logits_{value:g}", f"logits, share {value:g}", on_logits, (*game, *share(value)), cost=2),
            Method(
                f"logits_slow_{value:g}", f"logits, share {value:g}, slow", on_logits, (*game, *slow, *share(value)), cost=2
            ),
            Method(f"late_{value:g}", f"logits, share {value:g}, last fifth", on_logits, (*late, *share(value)), cost=1.5),
            Method(f"log_probs_{value:g}", f"log-probs, share {value:g}", on_log_probs, (*game, *share(value)), cost=2.5),
            Method(
                f"probabilities_{value:g}", f"probabilities, share {value:g}", on_probabilities,
                (*game, *light, *share(value)), cost=2.5,
            ),
            Method(
                f"probabilities_fast_{value:g}", f"probabilities, share {value:g}, fast", on_probabilities,
                (*game, *light, *fast, *share(value)), cost=2.5,
            ),
            Method(
                f"own_text_{value:g}", f"own text, share {value:g}", on_own_text, (*game, *own, *share(value)), cost=4,
                cached=False, control=OWN_TEXT,
            ),
            Method(
                f"own_text_slow_{value:g}", f"own text, share {value:g}, slow", on_own_text,
                (*game, *own, *slow, *share(value)), cost=4, cached=False, control=OWN_TEXT,
            ),
        ]  # fmt: skip
    # Where the rows above gain, so does leaving out cross entropy: does the adversary add to that?
    for value in (0.1, 0.3):
        rows += [
            Method(
                f"alone_late_{value:g}", f"no CE, logits, share {value:g}, last fifth", on_logits,
                (*late, *alone, *share(value)), cost=1.5, control=ALONE,
            ),
            Method(
                f"alone_probabilities_{value:g}", f"no CE, probabilities, share {value:g}", on_probabilities,
                (*game, *light, *alone, *share(value)), cost=2.5, control=ALONE,
            ),
            Method(
                f"alone_own_text_slow_{value:g}", f"no CE, own text, share {value:g}, slow", on_own_text,
                (*game, *own, *slow, *alone, *share(value)), cost=4, cached=False, control=ALONE_OWN_TEXT,
            ),
        ]  # fmt: skip
    return tuple(rows)
