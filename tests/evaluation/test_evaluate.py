"""One evaluation: its parts agree with the functions it is made of; tables and the figure."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from statistics import stdev

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console, RenderableType
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gakd.data import Example, Row
from gakd.evaluation import (
    Evaluation,
    checkpoints_table,
    comparison_table,
    completions_table,
    corpus_exact_match,
    corpus_rouge_l,
    divergences_to_teacher,
    evaluate,
    plot_metrics,
    rouge_l,
    teacher_outputs,
)
from gakd.samplers import Sampling, generate

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "over", "my", "red", "hat"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Of words, so that random text shares some with the references."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3 + len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return tiny_llama(0)


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return tiny_llama(1)


@pytest.fixture(scope="module")
def examples(tokenizer) -> list[Example]:
    texts = [("the cat", "sat on a mat"), ("my red hat", "ran"), ("and", "the cat ran over my hat"), ("on", "a mat")]
    return [
        Example(
            prompt_ids=tokenizer.encode(prompt),
            response_ids=[*tokenizer.encode(response), tokenizer.eos_token_id],
            row=Row(instruction=prompt, input="", responses=(response, "the")),
        )
        for prompt, response in texts
    ]


def test_evaluation_is_the_sum_of_its_parts(student, teacher, tokenizer, examples):
    sampling = Sampling(16)
    seeds = [10, 20, 30]
    result = evaluate(student, teacher, tokenizer, examples, sampling, text_examples=3, batch_size=2, seeds=seeds)
    parts = divergences_to_teacher(student, teacher, examples, 0)
    assert {name: getattr(result, name) for name in parts} == pytest.approx(parts, rel=1e-5)

    rouge, match, lengths, finished, predictions = [], [], [], [], []
    prompts = [example.prompt_ids for example in examples[:3]]
    references = [example.row.responses for example in examples[:3]]
    for seed in seeds:
        drawn = generate(student, tokenizer, prompts, Sampling(16, seed=seed), batch_size=2)
        texts = [" ".join(WORDS[index - 3] for index in one.ids if index > 2) for one in drawn]
        predictions.append(texts)
        rouge.append(corpus_rouge_l(texts, references))
        match.append(corpus_exact_match(texts, references))
        lengths.append(sum(len(one.ids) for one in drawn) / 3)
        finished.append(sum(one.finished for one in drawn) / 3)
    assert result.predictions == predictions[0]
    assert result.seeds == [10, 20, 30]
    expected = {"rouge_l": rouge, "exact_match": match, "response_length": lengths, "finished": finished}
    for name, values in expected.items():
        assert result.by_seed[name] == pytest.approx(values)
        assert getattr(result, name) == pytest.approx(sum(values) / 3)
        assert result.std[name] == pytest.approx(stdev(values))
    assert result.rouge_l_by_prompt == [list(map(rouge_l, texts, references)) for texts in predictions]
    assert len(set(rouge)) > 1
    assert 0 < sum(finished) < len(finished)
    assert Evaluation(**json.loads(json.dumps(asdict(result)))) == result


@torch.no_grad()
def test_the_distance_on_the_students_own_text_is_read_off_what_it_wrote(student, teacher, tokenizer, examples):
    sampling, seeds = Sampling(max_new_tokens=6), [3, 4]
    result = evaluate(student, None, tokenizer, examples, sampling, text_examples=3, seeds=seeds, reader=teacher)
    expected = []
    for seed in seeds:
        own = generate(student, tokenizer, [e.prompt_ids for e in examples[:3]], Sampling(6, seed=seed))
        total, tokens = 0.0, 0
        for example, generation in zip(examples, own, strict=False):
            written = [*generation.ids, tokenizer.eos_token_id] if generation.finished else generation.ids
            ids = torch.tensor([[*example.prompt_ids, *written]])
            log_q, log_p = (
                m(ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1) for m in (student, teacher)
            )
            total, tokens = total + float((log_q.exp() * (log_q - log_p)).sum()), tokens + len(written)
        expected.append(total / tokens)
    assert result.by_seed["own_reverse_kl"] == pytest.approx(expected, rel=1e-4)
    assert result.own_reverse_kl == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert result.std["own_reverse_kl"] == pytest.approx(stdev(expected), rel=1e-3)
    assert evaluate(student, None, tokenizer, examples, sampling).own_reverse_kl is None


def test_without_teacher_or_text(student, tokenizer, examples):
    alone = evaluate(student, None, tokenizer, examples, Sampling(4), text_examples=0)
    assert alone == Evaluation(cross_entropy=alone.cross_entropy)
    one = evaluate(student, None, tokenizer, examples, Sampling(4))
    assert len(one.predictions) == len(examples)
    assert (one.seeds, one.std, one.forward_kl) == ([10], {}, None)


def test_precomputed_teacher_gives_the_same(student, teacher, tokenizer, examples):
    outputs = teacher_outputs(teacher, examples, 0)
    with_outputs = evaluate(student, outputs, tokenizer, examples, Sampling(4), text_examples=0)
    with_model = evaluate(student, teacher, tokenizer, examples, Sampling(4), text_examples=0)
    assert with_outputs.reverse_kl == pytest.approx(with_model.reverse_kl)
    assert with_outputs.forward_kl == pytest.approx(with_model.forward_kl)


def test_refused_seeds(student, tokenizer, examples):
    with pytest.raises(ValueError, match="same text for every seed"):
        evaluate(student, None, tokenizer, examples, Sampling(4, temperature=0), seeds=[1, 2])
    with pytest.raises(ValueError, match="counts once"):
        evaluate(student, None, tokenizer, examples, Sampling(4), seeds=[1, 1])


BEFORE = Evaluation(2.31, 0.81, 0.92, 18.2, 0.5, 130.1, 0.62, std={"rouge_l": 0.31, "response_length": 3.1})
AFTER = Evaluation(2.01, 0.91, 0.42, 22.2, 0.5, 110.1, 0.82, std={"rouge_l": 0.21, "response_length": 2.1})
TEACHER = Evaluation(1.61, rouge_l=25.0, exact_match=1.5, response_length=100.1, finished=0.92)


def rendered(table: RenderableType, width: int) -> str:
    """As a log file or a pipe sees it; rich would crop a table that is too wide, so render wide and compare too."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(table)
    text = file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    return text


def test_comparison_table():
    lines = rendered(comparison_table({"before": BEFORE, "after": AFTER, "teacher": TEACHER}), 100).splitlines()
    cells = {line.strip().split("  ")[0]: line.split() for line in lines if line.strip()}
    assert cells["metric"] == ["metric", "before", "after", "change", "teacher"]
    assert cells["cross-entropy (nats) ↓"][3:] == ["2.310", "2.010", "-0.300", "better", "1.610"]
    assert cells["KL(teacher‖student) (nats) ↓"][3:] == ["0.810", "0.910", "+0.100", "worse", "–"]
    assert cells["ROUGE-L (%) ↑"][3:] == ["18.20", "±0.31", "22.20", "±0.21", "+4.00", "better", "25.00"]
    assert cells["exact match (%) ↑"][4:] == ["0.50", "0.50", "+0.00", "1.50"]
    assert cells["response length (tokens)"][3:] == ["130.1", "±3.1", "110.1", "±2.1", "-20.0", "100.1"]
    zero = rendered(comparison_table({"before": Evaluation(2.0), "after": Evaluation(1.99999)}), 100)
    assert zero.splitlines()[3].split()[3:] == ["2.000", "2.000", "+0.000"]
    without_text = rendered(comparison_table({"before": Evaluation(2.0), "after": Evaluation(1.0)}), 100)
    assert "ROUGE-L" not in without_text
    assert "KL" not in without_text


@pytest.mark.parametrize("width", [80, 100])
def test_checkpoints_table_keeps_every_number(width):
    names = ["runs/a-rather-long-name/of-an/exported/student", "b", "teacher: [/x]"]
    text = rendered(checkpoints_table(dict(zip(names, [BEFORE, AFTER, TEACHER], strict=True))), width)
    for shown in ("2.310", "0.810", "0.420", "18.20", "±0.21", "1.50", "110.1", "0.920", "(share) ↑", "[/x]"):
        assert shown in text


def test_completions_table_shows_brackets_and_cuts_long_text():
    prompts = ["Is [/bold] markup? " * 30, "second"]
    completions = {"reference": ["yes " * 200, "b"], "teacher": ["t [red]x", ""], "before": ["x" * 500, "c"]}
    completions["after"] = ["y", "d"]
    text = rendered(completions_table(prompts, completions), 100)
    for shown in ("Is [/bold] markup?", "t [red]x", "(empty)", "…", "reference", "after"):
        assert shown in text
    assert text.count("yes") < 80
    assert len(text.splitlines()) < 40
    with pytest.raises(ValueError, match=r"one text a prompt, got {'teacher': 1} for 2 prompts"):
        completions_table(prompts, {"teacher": ["one"]})


def test_plot_draws_each_series(tmp_path: Path):
    header = "step,loss,reverse_kl,discriminator_accuracy,gradient_norm,learning_rate,hellinger,valid/reverse_kl,empty"
    rows = [f"{s},{2 - s / 50},{1 - s / 90},0.7,{1 + s},{s * 1e-6},.5,{'' if s % 20 else 0.9},nan" for s in range(60)]
    (tmp_path / "metrics.csv").write_text("\n".join([header, *rows]))
    plot_metrics(tmp_path / "metrics.csv", tmp_path / "metrics.png")
    image = imread(tmp_path / "metrics.png")[:, :, :3]
    height, width = image.shape[:2]
    assert width / height == pytest.approx(3 * 4.6 / (2 * 3.0), rel=0.01), "expected 6 panels, in 3 columns and 2 rows"
    for row in range(2):
        for column in range(3):
            panel = image[row * height // 2 : (row + 1) * height // 2, column * width // 3 : (column + 1) * width // 3]
            coloured = (panel.max(axis=2) - panel.min(axis=2) > 0.25).sum()
            assert coloured > 100, f"nothing drawn in panel {row}, {column}"


def test_plot_refusals(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="expected a metrics CSV with a column `step`"):
        plot_metrics(file, tmp_path / "x.png")
    file.write_text("step,loss\n1,\n2,nan\n")
    with pytest.raises(ValueError, match="no metric to draw"):
        plot_metrics(file, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
