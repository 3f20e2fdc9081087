"""The model card: what its front matter and its text say, from known numbers."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard

from gakd.evaluation import Evaluation
from gakd.evaluation.card import write_card
from gakd.models.origin import Origin
from gakd.run.about import About

ABOUT = About(
    recipe="gakd", objective="0.5 * cross_entropy + ramp(0.1, start=2, steps=3) * own|term", command="gakd run gakd --steps 3",
    base=Origin("Qwen/Qwen3-0.6B", True), layers=[0, 3], lora_rank=8, licence={"license": "apache-2.0"},
    teacher=Origin("a`b|c", False), dataset=Origin("owner/rows:config", True), template="chat", batch_size=32,
    versions={"gakd": "0.1.0", "torch": "2.13.0"}, export_dtype="bfloat16", push_to_hub="me/small",
)  # fmt: skip
BEFORE, AFTER = (
    Evaluation(2.9, 1.5, 1.4, rouge_l=10.0, finished=0.0),
    Evaluation(1.634567, 0.25, -0.00001, rouge_l=23.456),
)
TEACHER = Evaluation(1.25)


def card_of(folder, about, evaluations=None) -> ModelCard:
    (folder / "run" / "student").mkdir(parents=True)
    (folder / "run" / "student" / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (folder / "run" / "metrics.csv").write_text("step,tokens,valid/rouge_l\n1,1000,\n2,234,\n2,,5.0\n")
    path = write_card(
        folder / "run" / "student", about, evaluations or {"before": BEFORE, "after": AFTER, "teacher": TEACHER}, "8 examples"
    )  # fmt: skip
    return ModelCard.load(path)


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    data = card_of(tmp_path, ABOUT).data
    assert (data.base_model, data.datasets, data.license) == ("Qwen/Qwen3-0.6B", "owner/rows", "apache-2.0")
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-generation", "small")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"cross_entropy": 1.635, "forward_kl": 0.25, "reverse_kl": 0.0, "rouge": 23.46}
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_the_text_has_names_formula_scores_command_and_versions(tmp_path):
    text = card_of(tmp_path, ABOUT).text
    for line in (
        "# small", "| base model | `Qwen/Qwen3-0.6B`, its layers 0, 3 |", r"| teacher | `ab\|c` |",
        "| data | `owner/rows:config` |",
        "| trained | 2 optimizer steps of 32 sequences; 1,234 tokens of responses |",
        "| weights | bfloat16, LoRA of rank 8 merged in |", ABOUT.objective, ABOUT.command, "gakd 0.1.0, torch 2.13.0.",
        "| | before | after | teacher |", "| cross-entropy (nats) | 2.900 | 1.635 | 1.250 |",
        "| KL(student‖teacher) (nats) | 1.400 | 0.000 | – |", "| ROUGE-L (%) | 10.00 | 23.46 | – |", 'name = "me/small"',
        "The base model's own files say: apache-2.0.",
    ):  # fmt: skip
        assert line in text.splitlines() or line in text.replace("  # where", "\n# where").splitlines(), line
    assert "exact match" not in text  # which nobody measured
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # each one whole, as wide as its head
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1
    assert len(re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)) == 2
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    "about",
    [About(), About(template="alpaca", base=Origin("student", False), dataset=Origin("rows.jsonl", False), layers=[4])],
)
def test_what_a_run_does_not_know_its_card_does_not_say(about, tmp_path):
    card = card_of(tmp_path, about, {"before": Evaluation(2.0), "after": Evaluation(1.0)})
    assert (card.data.base_model, card.data.datasets, card.data.license, card.data.model_name) == (
        None, None, None, "run" if about.dataset else None,
    )  # fmt: skip
    assert "None" not in card.text
    assert "name no licence, so none is given here" in card.text
    assert ("4 of its layers" in card.text) == bool(about.layers)
    assert ("set by the template `alpaca`" in card.text) == (about.template == "alpaca")
    assert "```bash" not in card.text
    assert "\n\n\n" not in card.text


def test_a_licence_of_its_own_keeps_name_and_link(tmp_path):
    licence = {"license": "other", "license_name": "own", "license_link": "LICENSE.md"}
    card = card_of(tmp_path, About(licence=licence))
    assert licence.items() <= card.data.to_dict().items()
    assert "The base model's own files say: own, LICENSE.md." in card.text
