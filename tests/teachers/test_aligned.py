"""A teacher of another tokenizer: its rows, one whole step with it, and the recipe, on tiny models."""

from __future__ import annotations

import copy
import csv
import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from gakd import (
    Adversarial,
    AlignedTeacher,
    Batch,
    CenteredLogitReadout,
    CrossEntropy,
    Distiller,
    ForwardKL,
    LocalTeacher,
    RelativisticGAN,
    TransformerDiscriminator,
    UniversalLogit,
)
from gakd.cli import parse
from gakd.cli.recipe_files import load_recipe
from gakd.data import Data, DataConfig, DataError, Example, Row, collate, encode
from gakd.data.alignment import align
from gakd.models import ModelConfig, ModelError
from gakd.objective import Coefficients, Counts, Objective
from gakd.teachers import load_aligned_teacher
from tests import tiny
from tests.data.test_alignment import CORPUS, byte_level
from tests.test_distiller import WaitWatch, assert_same

ROOT = Path(__file__).parents[2]
CONFIG = DataConfig(template="chat", max_length=120, max_prompt_length=80)
VOCAB, TEACHER_VOCAB = 272, 431


def other_tokenizer() -> PreTrainedTokenizerFast:
    words = copy.deepcopy(byte_level(420, trim_offsets=True))
    words.chat_template = (
        # The fourth prompt is long in this template alone.
        "{% for message in messages %}{{ message.content * (20 if message.content == 'Fourth' else 1) }}"
        "{% if message.role == 'user' %}{{ '\nAnswer:' }}{% endif %}{% endfor %}"
    )
    return words


def teacher_model(scale: float = 5.0):
    return tiny.model(TEACHER_VOCAB, width=48, layers=3, tied=False, seed=2, scale=scale)


ROWS = [
    Row("First", "", ("The quick brown fox jumps.",)),
    Row("Second", "", (" read   path\n    text",)),
    Row("Third", "", ("a 🙂 b",)),
    Row("Fourth", "", ("prompt too long for the teacher",)),
    Row("Fifth", "", ("café " * 12,)),  # cut
]


def examples() -> list[Example]:
    student = tiny.tokenizer()
    student.chat_template = (
        "{{ messages[0].content }}: {% if messages[1] is defined %}{{ messages[1].content }}{% endif %}"
    )
    return encode(ROWS, student, "chat", 40, 30)


def aligned_teacher(chosen: list[Example]) -> AlignedTeacher:
    config = DataConfig(template="chat", max_length=60, max_prompt_length=40)
    with pytest.warns(UserWarning, match=r"longer than 40 tokens in 1 of 5 examples"):
        return AlignedTeacher(teacher_model(), other_tokenizer(), chosen, tiny.tokenizer(), config)


def batch_of(chosen: list[Example]) -> Batch:
    return collate(chosen, 256)


def rows_by_hand(teacher: AlignedTeacher, chosen: list[Example]) -> tuple[list[int], Tensor]:
    """Each text alone through the teacher: which of the student's rows are paired, and the hidden states there."""
    words = other_tokenizer()
    rows, hidden, before = [], [], 0
    for example in chosen:
        prompt = words(
            words.apply_chat_template([{"role": "user", "content": example.row.instruction}], tokenize=False)
        )
        encoded = words(example.row.responses[0], add_special_tokens=False)["input_ids"]
        ids = [*prompt["input_ids"], *encoded]
        read = [words.decode(encoded[:row]) for row in range(len(encoded) + 1)]
        states = teacher.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        for row in range(len(example.response_ids)):
            text = tiny.tokenizer().decode(example.response_ids[:row])
            if "�" not in text and text in read and len(prompt["input_ids"]) <= 40:
                rows.append(before + row)
                hidden.append(states[len(prompt["input_ids"]) - 1 + read.index(text)])
        before += len(example.response_ids)
    return rows, torch.stack(hidden)


def test_rows_and_hidden_states_are_those_of_each_text_alone():
    chosen = examples()
    teacher = aligned_teacher(chosen)
    for part in (chosen, chosen[::-1], chosen[2:3], chosen[1:4]):
        output = teacher(batch_of(part))
        rows, hidden = rows_by_hand(teacher, part)
        assert output.rows.tolist() == rows
        torch.testing.assert_close(output.hidden_NH, hidden, rtol=1e-4, atol=1e-5)
        assert not output.shared_vocabulary
        assert output.head.weight is teacher.model.lm_head.weight
    share = len(rows_by_hand(teacher, chosen)[0]) / sum(len(example.response_ids) for example in chosen)
    assert teacher.aligned_share == pytest.approx(share)
    assert 0.2 < share < 0.9
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training


def test_with_one_tokenizer_it_is_the_local_teacher():
    words, model = tiny.tokenizer(), teacher_model()
    rows = [Row("ask", "", (text,)) for text in ("plain text", " spaces  inside ", "x" * 90)]
    chosen = encode(rows, words, "chat", 100, 60)
    teacher = AlignedTeacher(model, words, chosen, words, DataConfig(max_length=100, max_prompt_length=60))
    batch = batch_of(chosen)
    local, own = LocalTeacher(model)(batch), teacher(batch)
    assert own.rows.tolist() == list(range(len(local.hidden_NH)))
    torch.testing.assert_close(own.hidden_NH, local.hidden_NH, rtol=1e-5, atol=1e-6)
    assert teacher.aligned_share == 1


def test_sequences_it_does_not_know_are_refused():
    chosen = examples()
    teacher = aligned_teacher(chosen)
    (unknown,) = encode([Row("Sixth", "", ("new",))], tiny.tokenizer(), "chat", 100, 60)
    for batch in (batch_of([chosen[0], unknown]), batch_of(chosen)._replace(keys=())):
        with pytest.raises(
            ValueError, match=r"knows \d of the batch's \d sequences: build batches with gakd.data.collate"
        ):
            teacher(batch)


class Step:
    """A student, a teacher of another tokenizer and an objective."""

    def __init__(self, objective: Objective | None = None) -> None:
        self.examples = examples()
        self.student = tiny.model(VOCAB, seed=1, scale=3.0)
        self.teacher = aligned_teacher(self.examples)
        self.objective = objective or 1.0 * CrossEntropy() + 1.5 * UniversalLogit()
        self.distiller = Distiller(self.student, self.objective).train()

    def coefficients(self) -> Coefficients:
        tokens = sum(len(example.response_ids) for example in self.examples)
        return self.objective.coefficients(0, Counts(tokens, len(self.examples)))

    def run(self, groups: list[list[Example]]) -> dict[str, Tensor]:
        for group in groups:
            batch = batch_of(group)
            self.distiller(batch, self.teacher(batch), self.coefficients()).loss.backward()
        return {name: parameter.grad for name, parameter in self.student.named_parameters()}


def test_a_steps_gradient_is_autograds_through_whole_logits():
    step = Step()
    gradients = {name: gradient.clone() for name, gradient in step.run([step.examples]).items()}
    step.student.zero_grad()
    batch = batch_of(step.examples)
    rows, hidden = rows_by_hand(step.teacher, step.examples)
    logits = step.student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[batch.mask]
    q = logits[rows].softmax(-1).sort(descending=True).values
    p = step.teacher.model.lm_head(hidden).softmax(-1).sort(descending=True).values
    distance = (torch.cat([q, q.new_zeros(len(q), TEACHER_VOCAB - VOCAB)], 1) - p).abs().sum()
    loss = (cross_entropy(logits, batch.labels[batch.mask], reduction="sum") + 1.5 * distance) / len(logits)
    loss.backward()
    assert_same(gradients, {name: parameter.grad for name, parameter in step.student.named_parameters()}, 1e-4)
    output = step.distiller(batch, step.teacher(batch), step.coefficients())
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.token_losses["universal_logit"].sum(), distance, rtol=1e-5, atol=1e-5)


def test_micro_batches_and_order_leave_the_gradient_alone_rows_without_pairs_included():
    step = Step()
    pairs = [len(step.teacher(batch_of([example])).rows) for example in step.examples]
    assert min(pairs) == pairs[3] == 0 < max(pairs)
    expected = step.run([step.examples])
    assert all(gradient.count_nonzero() for gradient in expected.values())
    assert_same(Step().run([step.examples[:2], step.examples[2:3], step.examples[3:4], step.examples[4:]]), expected)
    assert_same(Step().run([step.examples[::-1]]), expected)


def test_a_micro_batch_without_any_pair_learns_from_its_labels_alone():
    step, plain = Step(), Step(1.0 * CrossEntropy())
    alone = step.examples[3:4]
    assert len(step.teacher(batch_of(alone)).rows) == 0
    assert_same(step.run([alone]), plain.run([alone]))
    batch = batch_of(alone)
    output = step.distiller(batch, step.teacher(batch), step.coefficients())
    assert torch.count_nonzero(output.token_losses["universal_logit"]) == 0


def test_nothing_of_the_students_step_waits_for_the_device():
    step = Step()
    batch = batch_of(step.examples)
    teacher_output = step.teacher(batch)
    with WaitWatch() as watch:
        step.distiller(batch, teacher_output, step.coefficients()).loss.backward()
    assert set(watch.seen) <= {"masking_utils.py"}


def test_terms_that_compare_token_with_token_are_refused_and_so_is_an_adversary():
    step = Step(1.0 * CrossEntropy() + 1.0 * ForwardKL())
    with pytest.raises(ValueError, match="forward_kl compare token with token"):
        step.run([step.examples])
    adversarial = Adversarial(
        TransformerDiscriminator(8, width=16, heads=2), RelativisticGAN(1.0, 1.0), CenteredLogitReadout(VOCAB, 8)
    )
    step = Step(1.0 * CrossEntropy() + 1.0 * UniversalLogit() + 0.1 * adversarial)
    with pytest.raises(ValueError, match="adversarial compares whole sequences of one tokenizer"):
        step.run([step.examples])


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> Path:
    """A teacher, a student of another tokenizer, and a dataset, in folders."""
    folder = tmp_path_factory.mktemp("families")
    theirs, words = teacher_model(40.0), other_tokenizer()
    theirs.generation_config.eos_token_id = words.eos_token_id
    tiny.save(folder / "teacher", theirs, words)
    tiny.save(folder / "student", tiny.model(layers=4, seed=1), tiny.tokenizer())
    (folder / "data").mkdir()
    draw = random.Random(0)
    vocabulary = [word for text in CORPUS[:2] for word in text.split()]
    for split, rows in (("train", 64), ("valid", 8), ("test", 8)):
        with (folder / "data" / f"{split}.jsonl").open("w") as file:
            for index in range(rows):
                response = " ".join(draw.choices(vocabulary, k=draw.randint(1, 5)))
                file.write(json.dumps({"instruction": f"{split} {index}", "output": response}) + "\n")
    return folder


@pytest.fixture
def run(families, tmp_path):
    """Runs a recipe on the two families; gives its output folder."""

    def run(recipe: str, *flags: str) -> Path:
        module = load_recipe(ROOT / "recipes" / "baselines" / f"{recipe}.py")
        arguments = [
            "--student", str(families / "student"), "--teacher", str(families / "teacher"),
            "--dataset", str(families / "data"), "--output-dir", str(tmp_path / "run"), "--student-layers", "2",
            "--lora-rank", "0", "--batch-size", "8", "--micro-batch-size", "4", "--learning-rate", "1e-2",
            "--max-length", "96", "--max-prompt-length", "64", "--steps", "24", "--save-every", "0", "--evaluate-every", "8",
            "--examples", "4", "--text-examples", "2", "--max-new-tokens", "4", *flags,
        ]  # fmt: skip
        module.main(parse(module.PAPER, module.DEMO, module.__doc__, arguments))
        return tmp_path / "run"

    return run


def losses_of(output: Path, name: str) -> tuple[float, float]:
    """A term's mean over the first and over the last epoch, of 8 windows each; each holds texts of like length."""
    with (output / "metrics.csv").open(newline="") as file:
        losses = [float(row[name]) for row in csv.DictReader(file) if row[name]]
    assert len(losses) == 24
    return sum(losses[:8]) / 8, sum(losses[16:]) / 8


def test_the_recipe_learns_from_a_teacher_of_another_tokenizer(run, capsys):
    output = run("uld")
    for name in ("cross_entropy", "universal_logit"):
        first, last = losses_of(output, name)
        assert last < 0.9 * first, name
    before, after = (json.loads((output / f"{name}.json").read_text()) for name in ("before", "after"))
    assert after["student"]["cross_entropy"] < before["student"]["cross_entropy"]
    assert "teacher" not in before
    (share,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The teacher speaks about")]
    assert 10 < float(share.split()[4].rstrip("%")) < 90


def test_without_cross_entropy_the_distance_alone_falls(run):
    first, last = losses_of(run("uld", "--cross-entropy-weight", "0"), "universal_logit")
    assert last < 0.9 * first


def test_token_level_recipes_refuse_the_pair_and_name_the_recipe_that_does_not(run):
    with pytest.raises(ModelError, match=r"different vocabularies: .* or distil with baselines/uld\.py"):
        run("reverse_kl")


def test_the_recipe_refuses_what_it_cannot_do_in_one_line(families, run, tmp_path):
    with pytest.raises(ModelError, match=r"^--teacher-cache somewhere holds hidden states of the student's own tokens"):
        run("uld", "--teacher-cache", "somewhere")
    config = ModelConfig(str(families / "student"), None)
    words, unpadded = tiny.tokenizer(), other_tokenizer()
    unpadded.pad_token = None
    with pytest.raises(DataError, match="the teacher's tokenizer has no padding token"):
        AlignedTeacher(teacher_model(), unpadded, examples(), words, CONFIG)
    data = Data(examples()[:1], [], [], 256, CONFIG)
    with pytest.raises(ModelError, match="learns from a teacher: give --teacher"):
        load_aligned_teacher(config, data, words, torch.float32, torch.device("cpu"))
    named = ModelConfig(str(families / "student"), str(families / "teacher"))
    with pytest.raises(ValueError, match=r"load the data with gakd\.data\.load_data"):
        load_aligned_teacher(named, data._replace(config=None), words, torch.float32, torch.device("cpu"))


def test_the_loaded_teacher_speaks_in_its_own_template():
    (example,) = encode(ROWS[:1], tiny.tokenizer(), "chat", 200, 100)
    aligned = align([example], tiny.tokenizer(), other_tokenizer(), CONFIG)[example.key]
    assert other_tokenizer().decode(aligned.example.prompt_ids) == "First\nAnswer:"
