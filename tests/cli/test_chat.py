"""`gakd chat`: what it answers, when it ends, and what it says to a model without a template."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from gakd.cli.chat import ChatConfig, Speaker
from gakd.cli.command import main
from gakd.models import load_model, load_tokenizer
from gakd.samplers import Sampling, generate
from tests import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("student", 1), ("teacher", 2)):
        tiny.save(folder / name, tiny.model(tied=False, seed=seed, scale=20.0), tiny.tokenizer())
    base = tiny.tokenizer()
    base.chat_template = None
    tiny.save(folder / "base", tiny.model(tied=False, seed=3, scale=20.0), base)
    return folder


def said(monkeypatch, capsys, piped: str, *flags: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    main(["chat", *flags, "--max-new-tokens", "6", "--temperature", "0"])
    return capsys.readouterr().out


def expected(folder: Path, *messages: str) -> str:
    """The greedy answer to the last message, by the batched generation of evaluations."""
    model, words = load_model(str(folder)), load_tokenizer(str(folder))
    if words.chat_template:
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        ids = words.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    else:
        ids = words(messages[-1])["input_ids"]
    return str(words.decode(generate(model, words, [ids], Sampling(6, 0.0))[0].ids, skip_special_tokens=True))


def test_a_conversation_goes_on_and_the_teacher_answers_the_same(models, monkeypatch, capsys):
    printed = said(monkeypatch, capsys, "hi\nand?\n", str(models / "student"), "--teacher", str(models / "teacher"))
    answers = {}
    for name in ("student", "teacher"):
        first = expected(models / name, "hi")
        answers[name] = (first, expected(models / name, "hi", first, "and?"))
    lines = [f"{name}: {answers[name][turn]}" for turn in (0, 1) for name in ("student", "teacher")]
    assert printed == "".join(f"{line}\n" for line in lines)
    assert answers["student"] != answers["teacher"]


@pytest.mark.parametrize("end", ["/quit\nmore\n", "\nmore\n", ""])
def test_it_ends_at_quit_at_an_empty_line_and_at_the_end(models, end, monkeypatch, capsys):
    printed = said(monkeypatch, capsys, f"hi\n{end}", str(models / "student"))
    assert printed == f"{expected(models / 'student', 'hi')}\n"


def test_a_model_without_a_template_continues_each_line(models, monkeypatch, capsys):
    printed = said(monkeypatch, capsys, "one\ntwo\n", str(models / "base"))
    assert printed == "".join(f"{expected(models / 'base', line)}\n" for line in ("one", "two"))


def test_what_has_no_room_in_the_window_is_forgotten_from_the_oldest_on(models, capsys):
    config = ChatConfig(str(models / "student"), system="Be short.", sampling=Sampling(6, 0.0))
    speaker, narrow, fresh = (Speaker(config.student, config) for _ in range(3))
    alone = fresh._prompt("and?")
    speaker.answer("hi")
    speaker.window = alone.shape[1] + 6  # of the last line with the system prompt, and an answer
    assert speaker._prompt("and?").tolist() == alone.tolist()
    narrow.window = 7
    assert narrow._prompt("and?").tolist() == alone.tolist()  # a line by itself is never cut
    capsys.readouterr()


def test_it_ends_where_it_is_interrupted_by_hand(models, monkeypatch):
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert main(["chat", str(models / "student")]) is None


def test_a_flag_out_of_its_bounds_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        said(monkeypatch, capsys, "", "./nobody", "--top-p", "2")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "top_p" in line
