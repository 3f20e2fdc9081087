"""Every block of Python in the documentation runs as it stands there, those of a page one after the other; and what a page
writes itself does what the package's own parts are tested for.
"""

from __future__ import annotations

import ast
import math
from types import SimpleNamespace

import pytest
import torch

import gakd
from gakd import data as gakd_data
from gakd.data import DataConfig, Example, Row, collate, load_data, load_rows
from gakd.models import write_folder
from gakd.objective import Counts
from gakd.run import Run, RunConfig
from gakd.samplers import ModelSampler, Sample, Sampling, samples_of
from tests import tiny
from tests.chat_server import ChatServer, serving
from tests.doc_blocks import PAGES, blocks, name_of, run_page
from tests.recipe_runs import make_material, metrics
from tests.recipe_table import ROOT
from tests.samplers.test_vllm import VllmStub
from tests.test_distiller import VOCAB, batch_of, sequences

OWN_PARTS = "docs/write-your-own.md"
# Each has a test below; README.md has tests/docs/test_readme.py.
RUN = {"README.md", OWN_PARTS} | {
    f"docs/{name}.md" for name in ("black-box", "compose", "index", "on-policy", "quickstart", "ship-it", "vllm")
}


def test_no_page_has_python_that_nothing_runs():
    assert {name_of(page) for page in PAGES if "```python" in page.read_text()} == RUN
    for page in PAGES:
        text = page.read_text()
        assert text.count("```") % 2 == 0, name_of(page)
        assert text.count("```python") == len(blocks(page, "python")), name_of(page)


def test_the_loop_of_the_home_page_trains_both_players():
    student, batch = tiny.model(VOCAB, seed=1), batch_of(sequences())
    teacher = tiny.model(VOCAB, width=48, tied=False, seed=2, scale=3.0)
    given = {"student": student, "teacher_model": teacher, "vocab_size": VOCAB, "batches": [batch] * 8}
    # At its own pace nothing would show in eight steps, and the game begin at the 200th.
    found = run_page("docs/index.md", given, {"5e-5": "3e-3", "2e-4": "3e-3", "start=200": "start=1"})
    counts, taught = Counts(sum(batch.lengths), len(batch.lengths)), found["teacher"](batch)
    by_token = 0.5 * gakd.CrossEntropy() + 0.5 * gakd.ReverseKL()
    with torch.no_grad():
        after, before = (
            gakd.Distiller(model, by_token).eval()(batch, taught, by_token.coefficients(8, counts)).loss
            for model in (student, tiny.model(VOCAB, seed=1))
        )
    assert after < before - 0.05
    moments = [found["optimizers"][1].state[parameter] for parameter in found["game"].parameters()]
    assert {int(state["step"]) for state in moments} == {7}
    assert sum(bool(state["exp_avg_sq"].sum() > 0) for state in moments) >= len(moments) - 2  # as in test_readme.py


def test_the_objective_of_the_compose_page_prints_its_formula(capsys):
    run_page("docs/compose.md", {"vocab_size": VOCAB})
    assert capsys.readouterr().out == (
        "0.5 * cross_entropy + 0.5 * reverse_kl(temperature=2) + ramp(0.1, start=200, steps=1) * "
        "adversarial(RelativisticGAN(r1=10, r2=10), TransformerDiscriminator, LogitReadout)\n"
    )


def test_the_loop_of_the_quickstart_trains_the_student(tmp_path, monkeypatch):
    material = make_material(tmp_path)
    for name, own in (("student", "my-student"), ("teacher", "my-teacher"), ("data", "my-rows")):
        (material / name).rename(tmp_path / own)
    monkeypatch.chdir(tmp_path)
    losses: list[float] = []
    run_page("docs/quickstart.md", {"print": lambda step, means: losses.append(sum(means.values()))})
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.05


def test_the_loop_of_the_on_policy_page_trains_on_the_students_text(tmp_path, capsys):
    material, words, student = make_material(tmp_path), tiny.tokenizer(), tiny.model(seed=1)
    data = load_data(DataConfig(dataset=str(material / "data"), max_length=96, max_prompt_length=64), words)
    run = Run(RunConfig(output_dir=tmp_path / "run", steps=2, batch_size=4, micro_batch_size=2), RunConfig())
    objective = 1.0 * gakd.PolicyGradient(0.2)
    found = run_page(
        "docs/on-policy.md",
        {
            "run": run, "data": data, "objective": objective, "teacher": gakd.LocalTeacher(tiny.model(seed=2, scale=4.0)),
            "distiller": run.setup(gakd.Distiller(student, objective)),
            "sampler": ModelSampler(student, words, Sampling(max_new_tokens=6), 96),
        },
    )  # fmt: skip
    rows = metrics(tmp_path / "run")
    assert [math.isfinite(float(row["policy_gradient"])) for row in rows] == [True, True]
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    assert max(length for batch in found["window"] for length in batch.lengths) <= 6
    assert capsys.readouterr().out.endswith(
        "TeacherLogRatio(scale=1.0) >> Clip(low=-5, high=5) >> only_the_unlikely >> RewardToGo(gamma=0.9) >> "
        "Whiten(shift_mean=True)\n"
    )
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    rollout = gakd.Rollout(mask_BT, torch.tensor([[-2.0, -0.5, -3.0], [-1.5, 0, 0]]), torch.full((2, 3), -1.0))
    advantages = found["reward"](rollout)[mask_BT]
    rewards = [1 + 0.81 * 2, 0.9 * 2, 2.0, 0.5]  # by hand: the likely second token has none of its own
    expected = torch.tensor(rewards)
    torch.testing.assert_close(advantages, (expected - expected.mean()) / expected.var(unbiased=False).sqrt())


def test_the_endpoint_of_the_black_box_page_answers_each_row_twice(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="the extra gakd[api] asks servers")
    rows = load_rows(str(make_material(tmp_path) / "data"), "valid")
    monkeypatch.setattr(gakd_data, "load_rows", lambda name, split: rows)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with serving(ChatServer()) as server:
        found = run_page("docs/black-box.md", {}, {"http://localhost:8000/v1": server.url})
    assert len(found["records"]) == 2 * len(rows)
    assert len(server.asked) == 2 * len(rows)
    assert (tmp_path / "responses.jsonl").exists()
    assert f"{2 * len(rows)} requests" in capsys.readouterr().out


def test_the_sampler_of_the_vllm_page_serves_the_students_weights(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the extra gakd[vllm] asks servers")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    given = {
        "tokenizer": tiny.tokenizer(), "sampling": Sampling(max_new_tokens=5), "student": tiny.model(seed=1),
        "config": SimpleNamespace(data=DataConfig(max_length=96)), "run": SimpleNamespace(folder=tmp_path),
    }  # fmt: skip
    with serving(VllmStub()) as server:
        found = run_page("docs/vllm.md", given, {"http://localhost:8000/v1": server.url})
        answered = found["own_text"]([Sample([1, 2, 3], [7, 258]), Sample([4], [8, 258])], 0)
    assert [sample.prompt_ids for sample in answered] == [[1, 2, 3], [4]]
    assert len(server.weights) == 1


def test_the_student_of_the_ship_it_page_answers(tmp_path, capsys):
    folder = write_folder(tiny.model(seed=1), tiny.tokenizer(), tmp_path / "student", dtype=torch.bfloat16)
    found = run_page("docs/ship-it.md", {}, {"runs/gakd/student": str(folder)})
    assert found["model"].dtype == torch.bfloat16
    assert 0 < len(found["written"]) <= 64
    assert capsys.readouterr().out


@pytest.fixture(scope="module")
def names() -> dict:
    """What docs/write-your-own.md makes, its sampler on a window of two micro-batches."""
    window = [
        collate([Example([1, 2, 3], [*range(10, 15), 258], Row("")), Example([4, 5], [20, 258], Row(""))], 256),
        collate([Example([6], [*range(30, 37), 258], Row(""))], 256),
    ]
    given = {
        "vocab_size": VOCAB, "student": tiny.model(seed=1), "tokenizer": tiny.tokenizer(), "step": 3, "window": window,
        "pad_token_id": 256, "before": window,
    }  # fmt: skip
    return run_page(OWN_PARTS, given)


def test_each_part_of_ones_own_takes_less_than_ten_lines():
    classes = {
        node.name: node.end_lineno - min([node.lineno, *(entry.lineno for entry in node.decorator_list)]) + 1
        for block in blocks(ROOT / OWN_PARTS, "python")
        for node in ast.parse(block).body
        if isinstance(node, ast.ClassDef)
    }
    assert list(classes) == [
        "TriangularDiscrimination", "SameMeaning", "LeastSquaresGAN", "PhraseDiscriminator", "Continued", "Brevity",
    ]  # fmt: skip
    assert max(classes.values()) < 10


def test_the_divergence_is_right_and_zero_where_the_models_agree(names):
    term = names["TriangularDiscrimination"]()
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 9, dtype=torch.float64, requires_grad=True), torch.randn(5, 9, dtype=torch.float64)
    losses = term.losses(logits.log_softmax(-1), teacher.log_softmax(-1))
    for row in range(5):
        q, p = (values[row].softmax(-1).tolist() for values in (logits.detach(), teacher))
        assert losses[row].item() == pytest.approx(sum((a - b) ** 2 / (a + b) for a, b in zip(q, p, strict=True)))
    same = term.losses(logits.log_softmax(-1), logits.detach().log_softmax(-1))
    assert same.abs().max() == 0
    assert torch.autograd.grad(same.sum(), logits)[0].abs().max() == 0
    tails = torch.tensor([[0.0, -200.0, -300.0]]), torch.tensor([[-0.7, -0.7, -300.0]])
    assert torch.isfinite(term.losses(*tails)).all()


def test_the_loss_a_sequence_is_zero_where_the_models_agree_and_trains_the_student(names):
    batch, student = batch_of(sequences()), tiny.model(VOCAB, seed=1)
    for teacher, agree in ((tiny.model(VOCAB, seed=1), True), (tiny.model(VOCAB, seed=2), False)):
        student.zero_grad()
        distiller = gakd.Distiller(student, names["SameMeaning"]())
        coefficients = distiller.objective.coefficients(0, Counts.over(batch))
        output = distiller(batch, gakd.LocalTeacher(teacher)(batch), coefficients)
        output.loss.backward()
        losses_B = output.token_losses["same_meaning"]
        torch.testing.assert_close(output.loss.detach(), losses_B.mean())
        assert bool((losses_B.abs() < 1e-6).all()) is agree
        assert bool(student.model.norm.weight.grad.abs().max() > 1e-3) is not agree


def test_the_discriminator_ignores_padding_and_sees_order(names):
    torch.manual_seed(0)
    discriminator = names["PhraseDiscriminator"](6, 8).double()
    readout, mask = torch.randn(3, 5, 6, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [2], [3]])
    scores = discriminator(readout, mask)
    assert torch.equal(discriminator(torch.where(mask.unsqueeze(-1), readout, 1e6), mask), scores)
    torch.testing.assert_close(discriminator(readout[1:2, :2], mask[1:2, :2])[0], scores[1])
    assert not torch.allclose(discriminator(readout.flip(1), mask)[0], scores[0])
    assert torch.autograd.gradgradcheck(lambda rows: discriminator(rows, mask), readout.requires_grad_())


def test_the_objective_of_the_three_trains_a_student(names):
    torch.manual_seed(0)
    student, batch = tiny.model(VOCAB, seed=1), batch_of(sequences())
    teacher = gakd.LocalTeacher(tiny.model(VOCAB, width=48, tied=False, seed=2, scale=3.0))
    objective, adversarial = names["objective"], names["adversarial"]
    distiller = gakd.Distiller(student, objective)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=3e-3) for module in (distiller, adversarial)]
    counts, losses = Counts(len(batch.labels_N), len(batch.lengths)), []
    for step in range(12):
        coefficients, teacher_output = objective.coefficients(step, counts), teacher(batch)
        output = distiller(batch, teacher_output, coefficients)
        game = adversarial(output, teacher_output, batch, coefficients)
        (output.loss + game.loss).backward()
        adversarial.flush()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in adversarial.parameters())


def test_the_sampler_keeps_the_beginning_and_writes_the_end(names):
    before, after = (
        [sample for batch in names[window] for sample in samples_of(batch)] for window in ("before", "window")
    )
    assert [sample.prompt_ids for sample in after] == [sample.prompt_ids for sample in before]
    for old, new in zip(before, after, strict=True):
        kept = len(old.response_ids) // 2
        assert new.response_ids[:kept] == old.response_ids[:kept]
        assert kept < len(new.response_ids) <= kept + 32
    again = names["sampler"](before, 3)
    assert [sample.response_ids for sample in again] == [sample.response_ids for sample in after]
    assert [sample.response_ids for sample in names["sampler"](before, 4)] != [sample.response_ids for sample in after]


def test_the_reward_asks_for_short_responses_and_reads_nothing_off_the_mask(names):
    mask_BT = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    log_probs_BT = torch.where(mask_BT, -1.0, math.nan)
    rewards_BT = names["Brevity"](tokens=4)(gakd.Rollout(mask_BT, log_probs_BT))
    assert rewards_BT.tolist() == [[0.0] * 5 + [-0.5], [0.0] * 6]
    chain = names["Brevity"](tokens=4) >> gakd.GroupNormalize(scale=False) >> gakd.RewardToGo(1)
    advantages_BT = chain(gakd.Rollout(mask_BT, log_probs_BT, group_B=torch.tensor([0, 0])))
    torch.testing.assert_close(advantages_BT, torch.where(mask_BT, torch.tensor([[-0.25], [0.25]]), 0))
