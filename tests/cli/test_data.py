"""`gakd data`: counts, and around exactly the taught tokens the marks that say so."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from gakd.cli import doctor
from gakd.cli.command import main
from gakd.data import Example, Row
from gakd.report.data_preview import example_text
from tests import tiny
from tests.chat_shapes import shapes

CONVERSATION = [
    {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Un."}, {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Deux."},
]  # fmt: skip


@pytest.fixture
def material(tmp_path, monkeypatch):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shapes()["chatml_base"].tokenizer.save_pretrained(tmp_path / "student")
    rows = [
        {"messages": CONVERSATION}, {"instruction": "Say hi", "output": "Hé \U0001f600 <|im_end|>"},
        {"instruction": "long " * 60, "output": "x"}, {"instruction": "cut", "output": "c" * 300},
        {"messages": [CONVERSATION[0], CONVERSATION[1] | {"weight": 0}]}, {"instruction": "bad", "output": 5},
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def shown(capsys, *flags) -> str:
    main(
        ["data", "--student", "student", "--dataset", ".", "--max-length", "200", "--max-prompt-length", "150", *flags]
    )
    return capsys.readouterr().out


def test_it_counts_and_marks_exactly_what_is_taught(material, capsys):
    (material / "valid.jsonl").write_text('{"instruction": "v", "output": "w"}\n')
    (material / "test.jsonl").write_text('{"instruction": "t", "output": "u"}\n')
    said = shown(capsys, "--skip-bad-rows", "--train-on", "all", "--examples", "9")
    lines = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in said.splitlines() if line.startswith("│")
    }
    assert lines["rows"] == "6"
    assert lines["kept"] == "3"
    assert lines["cut"] == "1 of 3 responses at 200 tokens (33.3 %)"
    assert lines["ends of a turn"] == "<|endoftext|> <|im_end|>"
    for reason in ("its prompt is too long, the first at train.jsonl:3", "all its turns have weight 0", "must be text"):
        assert reason in said
    assert "⟦Un.<|im_end|>⏎\n⟧<|im_start|>user⏎\nTwo?<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦Deux.<|im_end|>⏎\n⟧" in said
    assert "⟦Hé \U0001f600 <|im_end|><|im_end|>⏎\n⟧" in said
    assert "\x1b" not in said
    assert "151 to 175        0" in said
    assert "⟦w<|im_end|>" in shown(capsys, "--split", "valid")


def test_a_bad_row_is_one_line(material, capsys):
    with pytest.raises(SystemExit) as left:
        shown(capsys)
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert "train.jsonl:6: the response must be text, got 5. --skip-bad-rows leaves such rows out" in said[-1]
    with pytest.raises(SystemExit):
        shown(capsys, "--examples", "-1")
    assert "--examples" in capsys.readouterr().err


def test_prompts_alone(material, capsys):
    for split in ("train", "valid", "test"):
        (material / f"{split}.jsonl").write_text('{"prompt": "only"}\n')
    assert "⟦<|im_end|>⏎\n⟧" in shown(capsys, "--prompts-alone")


def test_colours_say_the_same_and_what_a_text_hides_is_shown():
    words = tiny.tokenizer()
    ids = words("a\x1b[2Jb", add_special_tokens=False)["input_ids"]
    example = Example(words("p\n")["input_ids"], [*ids, words.eos_token_id], Row("p"))
    text = example_text(example, words, marks=False)
    assert text.plain == "p⏎\na␛[2Jb<|im_end|>"
    taught = {str(span.style) for span in text.spans if span.start >= 3}
    assert all("bold green" in style for style in taught)
    console = Console(record=True, force_terminal=True, width=80)
    with console.capture() as printed:
        console.print(text)
    assert "\x1b[2J" not in printed.get()


def test_long_texts_say_how_much_is_left_out():
    words = tiny.tokenizer()
    long = words("x" * 5000)["input_ids"]
    plain = example_text(Example(long, long, Row("p")), words, marks=True).plain
    assert plain.startswith("(3,500 characters before)\n")
    assert plain.endswith("⟧\n(3,500 characters more)")


def test_the_doctor_shows_the_same(material, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "problems", lambda *_: [])
    monkeypatch.setattr(doctor, "device_problems", lambda *_: [])
    (material / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    doctor.main(doctor.DoctorConfig(dataset="train.jsonl", student="student"))
    said = capsys.readouterr().out
    assert "tokens that are taught" in said
    assert "⟦b<|im_end|>" in said
    with pytest.raises(ValueError, match="give both --dataset and --student"):
        doctor.main(doctor.DoctorConfig(dataset="train.jsonl"))
