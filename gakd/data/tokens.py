"""Token ids of prompts and of what is taught behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from gakd.data.rendering import special_pattern
from gakd.data.templates import Turn

# Ordinary beginnings of a response: where one is encoded otherwise behind its prompt, all are encoded together with theirs.
_PROBES = ("It is 4.", "4", "(a)", "é", "一", "#")
# Of a text, for each token that is kept of it: beyond, it would be encoded only to be thrown away.
_CHARACTERS, _MARGIN = 64, 64

Encode = Callable[[Sequence[str]], list[list[int]]]


class TurnIds(NamedTuple):
    prompt: list[int]
    response: list[int]  # what the template sets before the text, and the text
    behind: list[int]


class TurnTokens:
    """A tokenizer's ids of turns.

    Prompt and response are encoded apart, so that the ids of a prompt never depend on its response. `apart` is false for a
    tokenizer whose words look at what stands before them (Llama 2 begins each text with a space): there a response is what
    the whole has behind the prompt. `sample` is any turn of the template, by which that is found out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sample: Turn, adds_special: bool) -> None:
        self.tokenizer, self._adds_special = tokenizer, adds_special
        end = self._ids(["a"], add_special_tokens=adds_special, split_special_tokens=False)[0][-1:]
        self._adds_end = end == [tokenizer.eos_token_id]  # behind every text, also behind a prompt
        self._special, self._known = special_pattern(tokenizer), dict[str, list[int]]()
        self.apart = all(self._is_apart(sample._replace(text=probe)) for probe in _PROBES)

    def __call__(self, turns: Sequence[Turn], max_length: int) -> list[TurnIds]:
        """The ids of each turn, at least its first `max_length`."""
        prompts = self._within([turn.prompt for turn in turns], max_length, self._prompts)
        verbatim = iter(self._within([turn.text for turn in turns if turn.verbatim], max_length, self._spelled))
        marked = iter(self._within([turn.text for turn in turns if not turn.verbatim], max_length, self.marked))
        found = []
        for turn, prompt in zip(turns, prompts, strict=True):
            text = next(verbatim if turn.verbatim else marked)
            found.append(TurnIds(prompt, [*self._constant(turn.before), *text], self._constant(turn.behind)))
        return found if self.apart else [self._together(turn, ids) for turn, ids in zip(turns, found, strict=True)]

    def marked(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which control tokens are what they say."""
        return self._ids(texts, add_special_tokens=False, split_special_tokens=False)

    def _spelled(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which a control token is text: it must not end a response in its middle."""
        return self._ids(texts, add_special_tokens=False, split_special_tokens=True)

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """A chat template writes its own special tokens; other texts take those the tokenizer begins a text with."""
        found = self._ids(texts, add_special_tokens=self._adds_special, split_special_tokens=False)
        return [ids[:-1] if self._adds_end else ids for ids in found]

    def _ids(self, texts: Sequence[str], add_special_tokens: bool, split_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens, verbose=False
        )
        return encoded["input_ids"]  # type: ignore[return-value]

    def _within(self, texts: Sequence[str], max_length: int, encode: Encode) -> list[list[int]]:
        """Ids of the beginnings of texts, as far as `max_length` tokens need them."""
        most = _CHARACTERS * max_length
        found = encode([text[:most] for text in texts])
        for index, text in enumerate(texts):
            if len(text) > most and len(found[index]) < max_length + _MARGIN:
                found[index] = encode([text])[0]
        return found

    def _constant(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.marked([text])[0] if text else []
        return self._known[text]

    def _is_apart(self, turn: Turn) -> bool:
        prompt, whole = self._prompts([turn.prompt, turn.whole])
        pieces = [*self._constant(turn.before), *self._spelled([turn.text])[0], *self._constant(turn.behind)]
        return whole[: len(prompt)] != prompt or whole[len(prompt) :] == pieces

    def _together(self, turn: Turn, ids: TurnIds) -> TurnIds:
        if turn.verbatim and self._special.search(turn.text):
            return ids
        open_turn, whole = self._prompts([f"{turn.prompt}{turn.before}{turn.text}", turn.whole])
        start = len(ids.prompt)
        if open_turn[:start] != ids.prompt:
            return ids
        ends = whole[: len(open_turn)] == open_turn
        return TurnIds(ids.prompt, open_turn[start:], whole[len(open_turn) :] if ends else ids.behind)
