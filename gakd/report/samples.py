"""What teacher and students answered to the same test prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gakd.evaluation.evaluation import Evaluation
from gakd.report.groups import Group
from gakd.report.read import Prompt, RunData

_LONGEST = 1500  # characters of a text
# Control characters, which HTML does not have, those that turn the direction of what follows, and halves of pairs.
_UNSEEN = {*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)} - {
    9,
    10,
}
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _UNSEEN}


class Answer(NamedTuple):
    who: str
    runs: list[str]  # of which it is; empty for the reference
    place: int | None  # of their group, where it is one group's
    text: str


class Sample(NamedTuple):
    prompt: str
    known: bool  # whether the run kept its prompts
    answers: list[Answer]


def samples(groups: Sequence[Group], count: int) -> list[Sample]:
    """Of the first prompts: the reference, then teacher, before and after of each run; equal answers of one kind once."""
    found: dict[object, dict[tuple[str, str], Answer]] = {}
    prompts: dict[object, Prompt | None] = {}
    for index, group in enumerate(groups):
        for name, run in zip(group.names, group.runs, strict=True):
            for place in range(_answers(run)):
                prompt = run.prompts[place] if place < len(run.prompts) else None
                # Without its prompts a run's answers stand beside those of runs on the same data only.
                data = sorted(
                    (key, repr(value)) for key, value in run.config.items() if key.startswith(("data.", "evaluation."))
                )
                key = prompt or repr((place, data))
                prompts.setdefault(key, prompt)
                _take_in(found.setdefault(key, {}), run, prompt, name, index, place)
    ordered = list(found.items())[:count]
    return [
        _sample(prompts[key], number, list(answers.values()), groups) for number, (key, answers) in enumerate(ordered)
    ]


def plain(text: str) -> str:
    """Text that a page can show: control characters as escapes, its length bounded."""
    cut = len(text) - _LONGEST
    text = text[:_LONGEST].translate(_ESCAPES)
    return text + (f"… ({cut} more characters)" if cut > 0 else "")


def _shortened(names: list[str], groups: Sequence[Group]) -> list[str]:
    """A group's label for the names of all its runs; "all runs" for those of all groups."""
    if len(names) == sum(len(group.runs) for group in groups) > 1:
        return ["all runs"]
    whole = [group for group in groups if set(group.names) <= set(names)]
    rest = [name for name in names if not any(name in group.names for group in whole)]
    return [*(group.label for group in whole), *rest]


def _answers(run: RunData) -> int:
    each = [one.predictions for one in (run.teacher, run.before, run.after) if one is not None]
    return max((len(predictions) for predictions in each), default=0)


def _take_in(
    answers: dict[tuple[str, str], Answer], run: RunData, prompt: Prompt | None, name: str, index: int, place: int
) -> None:
    if prompt is not None:
        answers.setdefault(("reference", ""), Answer("reference", [], None, plain(prompt.reference)))
    sources: dict[str, Evaluation | None] = {"teacher": run.teacher, "before": run.before, "after": run.after}
    for who, evaluation in sources.items():
        if evaluation is None or place >= len(evaluation.predictions):
            continue
        text = plain(evaluation.predictions[place])
        known = answers.get((who, text))
        if known is None:
            answers[who, text] = Answer(who, [name], index, text)
        else:
            same = index if known.place == index else None
            answers[who, text] = known._replace(runs=[*known.runs, name], place=same)


def _sample(prompt: Prompt | None, number: int, answers: list[Answer], groups: Sequence[Group]) -> Sample:
    order = ("reference", "teacher", "before", "after")
    answers = [answer._replace(runs=_shortened(answer.runs, groups)) for answer in answers]
    answers.sort(key=lambda answer: order.index(answer.who))
    if prompt is None:
        return Sample(f"Test example {number + 1}", False, answers)
    return Sample(plain("\n\n".join(filter(None, (prompt.instruction, prompt.input)))), True, answers)
