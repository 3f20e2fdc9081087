"""Rows of two tokenizers that stand at the same character: against byte counts, on really different tokenizers."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from functools import cache

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from gakd.data import DataConfig, DataError, Row, encode
from gakd.data.alignment import align, positions
from tests import tiny

CONFIG = DataConfig(template="alpaca", max_length=400, max_prompt_length=200)
CORPUS = [
    "def read(path):\n    return path.read_text()  # the whole file\n\n\n    indented   again",
    "The quick brown fox jumps over the lazy dog, and the café serves naïve tea for 12.50 € 🙂",
    "日本語の文章と emoji 😀👍🏽 and   spaces\tand tabs",
] * 4
TEXTS = [
    *CORPUS[:3],
    "plain words only",
    " leading space and trailing space ",
    "   three before\n\n\n    four after a break   ",
    "\n\nbreaks first and last\n\n",
    "tabs\there\t\tand\r\nthere",
    "😀",
    "a😀b👍🏽c 日本 é e\u0301 x\u200by",
    "x" * 40 + "  " + "y" * 3,
    "nothing<|im_end|>is special <|endoftext|> here",
    "punctuation, (brackets) [and] {more}: 3.14 -1 +2 == !=",
]


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


@cache
def byte_level(vocab_size: int, trim_offsets: bool = False, use_regex: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    return wrapped(backend)


@cache
def llama_like() -> PreTrainedTokenizerFast:
    """Spaces as a symbol, one put in front; characters that are no token as bytes."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *fallback], limit_alphabet=40)
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend)


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Composes characters and folds spaces, as SentencePiece does."""
    backend = Tokenizer(models.Unigram())
    fold = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), fold])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>")
    backend.train_from_iterator([*CORPUS, *TEXTS], trainer)
    return wrapped(backend)


@cache
def word_piece() -> PreTrainedTokenizerFast:
    """Leaves spaces out altogether."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"])
    backend.train_from_iterator([*CORPUS, *TEXTS], trainer)
    return wrapped(backend)


EXACT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": tiny.tokenizer,
    "small": lambda: byte_level(300),
    "trimmed": lambda: byte_level(420, trim_offsets=True),
    "without words": lambda: byte_level(380, use_regex=False),
}
LOSSY: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama-like": llama_like, "unigram": unigram, "word piece": word_piece
}  # fmt: skip
ALL = EXACT | LOSSY


def example_of(text: str, tokenizer: PreTrainedTokenizerFast, config: DataConfig = CONFIG):
    (example,) = encode([Row("ask", "", (text,))], tokenizer, "alpaca", config.max_length, config.max_prompt_length)
    return example


def pairs_of(
    text: str, ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast, config: DataConfig = CONFIG
) -> list[tuple[int, int]]:
    example = example_of(text, ours, config)
    return align([example], ours, theirs, config)[example.key].pairs


def rows_at_bytes(text: str, tokenizer: PreTrainedTokenizerFast, limit: int) -> dict[int, int]:
    """`{bytes read: row}` of a byte-level tokenizer, each of whose symbols is one byte; only between characters."""
    ids = example_of(text, tokenizer).response_ids[:limit]
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    borders = {len(text[:index].encode()) for index in range(len(text) + 1)}
    read = [sum(lengths[:row]) for row in range(len(ids))]
    return {size: row for row, size in enumerate(read) if size in borders}


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    pieces = ["a", "the", "read", "fox", "(", "0", "12", ".", " ", " ", "  ", "    ", "\n", "\t", "\u00a0"]
    pieces += ["é", "e\u0301", "😀", "👍🏽", "日"]
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 40))) for _ in range(count)]
    return [text for text in texts if text.strip()]


@pytest.mark.parametrize("theirs", EXACT)
@pytest.mark.parametrize("ours", EXACT)
def test_pairs_of_byte_level_tokenizers_are_exactly_the_rows_that_have_read_the_same_bytes(ours, theirs):
    student, teacher = EXACT[ours](), EXACT[theirs]()
    prompts = [len(example_of("x", words).prompt_ids) for words in (student, teacher)]
    for text in [*TEXTS, *random_texts(60)]:
        for room in (300, 12, 5):  # for the response of the one with the longer prompt
            config = DataConfig(template="alpaca", max_length=max(prompts) + room, max_prompt_length=max(prompts))
            own, their = (
                rows_at_bytes(text, words, config.max_length - prompt)
                for words, prompt in zip((student, teacher), prompts, strict=True)
            )
            expected = [(row, their[size]) for size, row in own.items() if size in their]
            assert pairs_of(text, student, teacher, config) == expected, repr(text)


def comparable(text: str) -> str:
    """A text without what lossy tokenizers change: spaces, and how a character is composed."""
    return "".join(unicodedata.normalize("NFKC", text).split())


@pytest.mark.parametrize("theirs", LOSSY)
@pytest.mark.parametrize("ours", ALL)
def test_pairs_with_lossy_tokenizers_have_read_the_same_words_and_are_no_fewer_than_those(ours, theirs):
    student, teacher = ALL[ours](), ALL[theirs]()
    shares = []
    for text in TEXTS:
        pairs = pairs_of(text, student, teacher)
        ids = [example_of(text, words).response_ids[:-1] for words in (student, teacher)]
        if any(words.unk_token_id in part or "[UNK]" in words.convert_ids_to_tokens(part)
               for words, part in zip((student, teacher), ids, strict=True)):  # fmt: skip
            continue
        read = [
            [comparable(words.decode(part[:row], clean_up_tokenization_spaces=False)) for row in range(len(part) + 1)]
            for words, part in zip((student, teacher), ids, strict=True)
        ]
        assert pairs[0] == (0, 0)
        assert pairs[-1] == (len(ids[0]), len(ids[1]))
        assert pairs == sorted(pairs)
        for row, teacher_row in pairs:
            assert read[0][row] == read[1][teacher_row], repr(text)
        shares.append(len(pairs) / len(set(read[0]) & set(read[1])))
    assert len(shares) >= 5
    # Between 0.79 and 1: the trainers break ties by the order of a hash map, so the pieces differ from run to run.
    assert sum(shares) / len(shares) > 0.75


def test_the_same_tokenizer_pairs_each_row_with_itself():
    for words in (build() for build in (EXACT["small"], EXACT["trimmed"])):
        for text in (text for text in TEXTS if text.isascii()):
            rows = len(example_of(text, words).response_ids)
            assert pairs_of(text, words, words) == [(row, row) for row in range(rows)]


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [
        ("ab cd", [(0, 2), (2, 5)], {0: 0, 2: 1, 5: 2}),
        ("ab cd", [(0, 2), (3, 5)], {0: 0, 2: 1, 5: 2}),  # the space is nobody's: it belongs to the next token
        ("ab-cd", [(0, 2), (3, 5)], {0: 0, 5: 2}),  # a sign is somebody's
        ("a😀b", [(0, 1), (1, 2), (1, 2), (2, 3)], {0: 0, 1: 1, 2: 3, 3: 4}),
        ("a😀b", [(0, 2), (1, 2), (1, 3)], {0: 0, 3: 3}),  # pieces of the character are parts of other tokens
        ("abc", [(0, 1), (1, 1), (1, 3)], {0: 0, 3: 3}),  # two rows at one place, none of which is the one
        ("ab", [(0, 0), (0, 2)], {0: 0, 2: 2}),
        ("ab", [(0, 2), (2, 2)], {0: 0, 2: 2}),
    ],
)
def test_where_rows_stand(text, offsets, expected):
    assert positions(text, offsets, len(offsets) + 1) == expected


def test_a_cut_response_keeps_what_stands_and_its_end_is_no_row():
    offsets = [(0, 2), (2, 3), (3, 5)]
    assert positions("ab cd", offsets, 3) == {0: 0, 2: 1, 3: 2}
    assert positions("ab cd", offsets, 2) == {0: 0, 2: 1}
    assert positions("ab", [(0, 2), (2, 2)], 2) == {0: 0}  # all has been read, but the end is another row's
    small, large = byte_level(300), byte_level(420)
    prompt = len(example_of("x", small).prompt_ids)
    cut = DataConfig(template="alpaca", max_length=prompt + 9, max_prompt_length=prompt)
    whole = pairs_of(CORPUS[1], small, large)
    limit = 9 + prompt - len(example_of("x", large).prompt_ids)
    assert pairs_of(CORPUS[1], small, large, cut) == [(i, j) for i, j in whole if i < 9 and j < limit]


def test_the_teachers_example_is_its_own_prompt_and_the_response_up_to_the_last_pair():
    student, teacher = tiny.tokenizer(), byte_level(420)
    example = example_of("The quick brown fox", student)
    aligned = align([example], student, teacher, CONFIG)[example.key]
    whole = example_of("The quick brown fox", teacher)
    assert aligned.example == whole
    assert aligned.rows == len(example.response_ids)
    prompt = len(example.prompt_ids)
    cut = DataConfig(template="alpaca", max_length=prompt + 6, max_prompt_length=prompt)
    example = example_of("The quick brown fox", student, cut)  # "The qu"
    aligned = align([example], student, teacher, cut)[example.key]
    assert teacher.decode(aligned.example.response_ids[:-1]) in ("The", "The q")
    assert len(aligned.example.response_ids) == aligned.pairs[-1][1] + 1


def test_prompts_too_long_for_the_teacher_have_no_pairs_and_are_counted():
    student, teacher = byte_level(420), tiny.tokenizer()
    rows = [Row("ask" * length, "", ("an answer",), where=f"file:{length}") for length in (1, 30, 1)]
    examples = encode(rows, student, "alpaca", 400, 250)
    limit = len(encode(rows[:1], teacher, "alpaca", 400, 250)[0].prompt_ids)
    config = DataConfig(template="alpaca", max_length=400, max_prompt_length=limit)
    with pytest.warns(UserWarning, match=rf"longer than {limit} tokens in 1 of 3 examples.*the first at 'file:30'"):
        aligned = align(examples, student, teacher, config)
    assert [len(aligned[example.key].pairs) > 0 for example in examples] == [True, False, True]
    assert aligned[examples[1].key].example.response_ids == []
    with pytest.raises(DataError, match=r"in 1 of 1 examples.*none is left; raise --max-prompt-length"):
        align(examples[1:2], student, teacher, config)


def test_what_cannot_be_aligned_is_refused_with_what_to_do():
    small, large = byte_level(300), byte_level(420)
    example = example_of("The quick brown fox", small)
    with pytest.raises(DataError, match="not those of the student's tokenizer: pass the tokenizer that encoded"):
        align([example], large, small, CONFIG)
    slow = ByT5Tokenizer()
    with pytest.raises(DataError, match=r"ByT5Tokenizer does not say which characters.*tokenizer\.json"):
        align([example], small, slow, CONFIG)


def test_aligning_leaves_the_tokenizers_as_they_were():
    words = byte_level(420, trim_offsets=True)
    before = words.backend_tokenizer.to_str()
    pairs_of("a b <|end|>", words, words)
    assert words.backend_tokenizer.to_str() == before
    assert words("<|end|>", add_special_tokens=False)["input_ids"] == [words.eos_token_id]
