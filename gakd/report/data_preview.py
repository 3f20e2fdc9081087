"""What a dataset becomes, for a person to look at: counts, lengths, and examples with what is taught in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from gakd.data.ends import control_ids
from gakd.data.examples import Example

_BAR = 30  # characters of the longest bar
_SHOWN = 1500  # characters of a prompt's end, and of what is taught
# Characters that move a terminal's cursor, or more, are shown and not obeyed.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_TAUGHT, _CONTEXT, _CONTROL = "bold green", "dim", "magenta"


def counts_table(counts: Mapping[str, Any], about: Sequence[tuple[str, str]], title: str) -> Table:
    """Rows, what was left out and why, what is cut, tokens; `about` are further lines."""
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_row("rows", f"{counts['rows']:,}")
    table.add_row("kept", f"{counts['kept']:,}")
    for reason, (count, first) in counts["left_out"].items():
        table.add_row("left out", escape(f"{count:,}: {reason}, the first at {first}"))
    if counts["examples"] != counts["kept"]:
        table.add_row("examples", f"{counts['examples']:,}")
    share = counts["cut"] / max(counts["kept"], 1)
    table.add_row(
        "cut",
        f"{counts['cut']:,} of {counts['kept']:,} responses at {counts['max_length']} tokens ({100 * share:.1f} %)",
    )
    table.add_row("tokens that are taught", f"{counts['supervised']:,}")
    for name, label in (("prompt_length", "prompt, tokens"), ("length", "whole, tokens")):
        table.add_row(
            label,
            f"mean {counts[name]['mean']:,}, median {counts[name]['median']:,}, longest {counts[name]['longest']:,}",
        )
    for label, value in about:
        table.add_row(label, escape(value))
    return table


def histogram(counts: Mapping[str, Any]) -> Text:
    """Bars of the lengths of prompts and of whole examples."""
    text = Text()
    for name, label in (("prompt_histogram", "prompts"), ("histogram", "whole examples")):
        rows = counts[name]
        most, begin = max((count for _, count in rows), default=0) or 1, 0
        text.append(f"{label}, by tokens\n", style="bold")
        for edge, count in rows:
            bar = "█" * max(round(_BAR * count / most), count > 0)
            text.append(f"{f'{begin + (begin > 0):,} to {edge:,}':<16} {bar} {count:,}\n")
            begin = edge
    return text


def example_text(example: Example, tokenizer: PreTrainedTokenizerBase, marks: bool) -> Text:
    """An example, control tokens visible; with `marks` what is taught stands within brackets, for where there is no colour."""
    prompt = _pieces(tokenizer, example.prompt_ids, [False] * len(example.prompt_ids))
    trained = list(example.trained or [True] * len(example.response_ids))
    text = Text()
    _append(text, prompt, marks, last=True)
    _append(text, _pieces(tokenizer, example.response_ids, trained), marks, last=False)
    return text


Piece = tuple[str, bool, bool]  # text, whether it is taught, whether it is a control token


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], taught: Sequence[bool]) -> list[Piece]:
    """Runs of tokens of one kind, decoded together: a byte-level token may be a part of a character."""
    control = control_ids(tokenizer)
    kinds = [(is_taught, token in control) for token, is_taught in zip(ids, taught, strict=True)]
    found, before = [], ids[:0]
    for (is_taught, is_control), group in groupby(zip(kinds, ids, strict=True), key=lambda pair: pair[0]):
        own = [token for _, token in group]
        # Some decoders leave the first space of a text out: the token before keeps it.
        text = _decoded(tokenizer, [*before, *own]).removeprefix(_decoded(tokenizer, before))
        found.append((text, is_taught, is_control))
        before = own[-1:]
    return found


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return (
        str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
    )


def _append(text: Text, pieces: Sequence[Piece], marks: bool, last: bool) -> None:
    """Pieces up to a number of characters: the last ones of a prompt, the first ones of what is taught."""
    left, kept = _SHOWN, []
    for piece in reversed(pieces) if last else pieces:
        own = piece[0][-left:] if last else piece[0][:left]
        kept.append((own, *piece[1:]))
        left -= len(own)
        if left <= 0:
            break
    omitted = sum(len(piece[0]) for piece in pieces) - sum(len(piece[0]) for piece in kept)
    if omitted and last:
        text.append(f"({omitted:,} characters before)\n", style="italic")
    ordered = kept[::-1] if last else kept
    for is_taught, group in groupby(ordered, key=lambda piece: piece[1]):
        if marks and is_taught:
            text.append("⟦")
        for own, _, is_control in group:
            style = f"{_TAUGHT} {_CONTROL if is_control else ''}" if is_taught else _CONTROL if is_control else _CONTEXT
            text.append(own.translate(_CONTROLS).replace("\n", "⏎\n"), style=style)
        if marks and is_taught:
            text.append("⟧")
    if omitted and not last:
        text.append(f"\n({omitted:,} characters more)", style="italic")
