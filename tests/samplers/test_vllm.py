"""The contract with a vLLM server, against one that answers as its documentation says, or fails as it is told to."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from gakd.data import collate
from gakd.errors import InputError
from gakd.samplers import Mixture, Sample, Sampling, VllmSampler, VllmServer, dataset_sampler, resample
from tests import tiny
from tests.chat_server import ChatServer, Reply, serving

END, PAD = 258, 256  # of tests.tiny's tokenizer
KEY = "sk-0123456789-secret"
RELOAD, RESET, COMPLETE = "/collective_rpc", "/reset_prefix_cache", "/v1/completions"
SAMPLES = [Sample([1, 2, 3], [7, END]), Sample([4], [8, END]), Sample([5, 6], [9, END])]
SAMPLING = Sampling(max_new_tokens=5, temperature=0.7, top_p=0.9, seed=11)
AT_ONCE = Reply("{}", 503, (("retry-after-ms", "1"),))  # a passing failure that asks for no wait


def choice(token_ids: list[int] | None, finish_reason: str = "stop", stop_reason: int | None = END) -> dict[str, Any]:
    return {
        "index": 0, "text": "", "finish_reason": finish_reason, "stop_reason": stop_reason, "token_ids": token_ids
    }  # fmt: skip


class VllmStub(ChatServer):
    """`seen` holds path and body of each request; `written` is what `choices` gives to a prompt, `weights` what was loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.choices: dict[tuple[int, ...], dict[str, Any]] = {}
        self.waits: dict[tuple[int, ...], float] = {}
        self.weights: list[dict[str, torch.Tensor]] = []
        self.folders: list[Path] = []
        self._seen_lock = threading.Lock()

    def reply(self, path: str, key: str, asked: dict[str, Any]) -> Reply:
        with self._seen_lock:
            self.seen.append((path, asked))
            self.keys.append(key)
            if self.script:
                return self.script.pop(0)
        if path == RELOAD:
            self.folders.append(Path(asked["kwargs"]["weights_path"]))
            self.weights.append(load_file(self.folders[-1] / "model.safetensors"))
            return Reply('{"results": [null]}')
        if path == RESET:
            return Reply("", headers=(("content-type", "text/plain"),))
        prompt = tuple(asked["prompt"])
        answer = {"object": "text_completion", "choices": [self.choices.get(prompt, choice([*prompt, END]))]}
        return Reply(json.dumps(answer), wait=self.waits.get(prompt, 0.0))

    def bodies(self) -> dict[tuple[int, ...], dict[str, Any]]:
        return {tuple(body["prompt"]): body for path, body in self.seen if path == COMPLETE}

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def stub():
    with serving(VllmStub()) as server:
        yield cast(VllmStub, server)


def sampler_of(
    stub: VllmStub, max_length=None, student=None, folder=None, refresh_every=1, retries=0, sampling=SAMPLING
):
    server = VllmServer(stub.url, "m", retries=retries, timeout=5.0)
    return VllmSampler(server, tiny.tokenizer(), sampling, max_length, student, folder, refresh_every)


def test_a_request_holds_the_prompts_ids_and_the_models_own_distribution(stub, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    sampler_of(stub)(SAMPLES, step=3)
    assert stub.paths() == [COMPLETE] * 3
    assert stub.keys == [f"Bearer {KEY}"] * 3
    bodies = stub.bodies()
    assert bodies.keys() == {(1, 2, 3), (4,), (5, 6)}
    seeds = [bodies[tuple(sample.prompt_ids)].pop("seed") for sample in SAMPLES]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert bodies[4,] == {
        "model": "m", "prompt": [4], "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "return_token_ids": True,
        "stop_token_ids": [END], "ignore_eos": True, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def test_seeds_are_a_function_of_seed_and_step(stub):
    def seeds(seed: int, step: int) -> list[int]:
        stub.seen.clear()
        sampler_of(stub, sampling=Sampling(seed=seed))([Sample([index], [END]) for index in range(4)], step)
        return [stub.bodies()[index,]["seed"] for index in range(4)]

    first = seeds(1, 5)
    assert seeds(1, 5) == first
    assert not set(first) & set(seeds(1, 6))
    assert not set(first) & set(seeds(2, 5))


def test_equal_prompts_of_a_step_are_drawn_apart(stub):
    sampler_of(stub)([Sample([4], [END])] * 8, step=0)
    assert len({body["seed"] for _, body in stub.seen}) == 8


def test_responses_stand_at_their_prompts_whatever_the_order_of_arrival(stub):
    stub.waits = {(1, 2, 3): 0.3, (4,): 0.15}
    answered = sampler_of(stub)(SAMPLES, step=0)
    assert answered == [
        Sample([1, 2, 3], [1, 2, 3, END]),
        Sample([4], [4, END]),
        Sample([5, 6], [5, 6, END]),
    ]


def test_an_end_is_a_label_whether_or_not_the_server_counts_it_and_a_cut_has_none(stub):
    stub.choices = {
        (1, 2, 3): choice([7, END]),  # vLLM's documented form
        (4,): choice([7], stop_reason=None),
        (5, 6): choice([7, 8, 9, 10, 11], "length", None),
    }
    sampler = sampler_of(stub)
    answered = [sample.response_ids for sample in sampler(SAMPLES, step=0)]
    assert answered == [[7, END], [7, END], [7, 8, 9, 10, 11]]
    assert sampler.truncated == pytest.approx(1 / 3)


def test_a_response_ends_where_the_window_does(stub):
    """`max_length` 4: one token after a prompt of three, as after one that is too long; four and no more after none."""
    samples = [Sample([1, 2, 3], [END]), Sample([4], [END]), Sample([5] * 9, [END])]
    stub.choices = {tuple(sample.prompt_ids): choice([7, 8, END]) for sample in samples}  # a server that gives more
    sampler = sampler_of(stub, max_length=4)
    answered = [sample.response_ids for sample in sampler(samples, step=0)]
    assert [stub.bodies()[tuple(sample.prompt_ids)]["max_tokens"] for sample in samples] == [1, 3, 1]
    assert answered == [[7], [7, 8, END], [7]]
    assert sampler.truncated == pytest.approx(2 / 3)


def test_the_server_reads_the_students_weights_of_that_step_before_it_writes(stub, tmp_path):
    student = tiny.model()
    sampler = sampler_of(stub, student=student, folder=tmp_path / "served")
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.01)
        stub.seen.clear()
        sampler(SAMPLES, step)
        assert stub.paths() == [RELOAD, RESET, COMPLETE, COMPLETE, COMPLETE]
        folder = tmp_path / "served" / f"step-{step}"
        assert stub.seen[0][1] == {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        own = dict(student.named_parameters())  # the head is tied: once in a checkpoint
        assert stub.weights[-1].keys() == own.keys()
        assert all(torch.equal(own[name], weight) for name, weight in stub.weights[-1].items())
        assert [path.name for path in (tmp_path / "served").iterdir()] == [f"step-{step}"]
        assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_a_lora_student_is_served_merged_and_stays_as_it_is(stub, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = {name: value.clone() for name, value in tiny.model().state_dict().items()}
    student = get_peft_model(tiny.model(), LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    sampler_of(stub, student=student, folder=tmp_path)(SAMPLES, 0)
    (served,) = stub.weights
    expected = base["model.layers.1.self_attn.q_proj.weight"] + 3 * (
        before["base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight"]
        @ before["base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight"]
    )
    torch.testing.assert_close(served["model.layers.1.self_attn.q_proj.weight"], expected)
    assert served.keys() == base.keys() - {"lm_head.weight"}
    assert torch.equal(served["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_weights_are_refreshed_once_in_a_period_also_when_some_steps_do_not_sample(stub, tmp_path):
    sampler = sampler_of(stub, student=tiny.model(), folder=tmp_path, refresh_every=4)
    for step in (1, 2, 5, 7, 12, 13):  # none of them but 12 is a multiple of 4
        sampler(SAMPLES[:1], step)
    assert [folder.name for folder in stub.folders] == ["step-1", "step-5", "step-12"]


@pytest.mark.parametrize(("failing", "status"), [(RELOAD, 500), (RELOAD, 404), (RESET, 404)])
def test_a_server_that_does_not_reload_is_not_sampled_from(stub, tmp_path, failing, status):
    sampler = sampler_of(stub, student=tiny.model(), folder=tmp_path)
    stub.script = [Reply('{"results": [null]}')] * (failing == RESET) + [Reply('{"detail": "no"}', status)]
    with pytest.raises(InputError, match=rf"{failing}: {status}.*not the student's.*VLLM_SERVER_DEV_MODE=1") as caught:
        sampler(SAMPLES, 0)
    assert "\n" not in str(caught.value)
    assert COMPLETE not in stub.paths()
    sampler(SAMPLES, 0)  # the next call begins with the weights again
    assert stub.paths()[-5:] == [RELOAD, RESET, COMPLETE, COMPLETE, COMPLETE]


def test_a_passing_failure_is_tried_again(stub, tmp_path):
    stub.script = [AT_ONCE, AT_ONCE]
    answered = sampler_of(stub, student=tiny.model(), folder=tmp_path, retries=2)(SAMPLES[:1], 0)
    assert stub.paths() == [RELOAD, RELOAD, RELOAD, RESET, COMPLETE]
    stub.script = [AT_ONCE]
    assert sampler_of(stub, retries=1)(SAMPLES[:1], 0) == answered


def test_a_server_without_token_ids_is_refused_in_one_line(stub):
    stub.choices = {(4,): choice(None)}
    with pytest.raises(InputError, match=r"without token ids.*vLLM 0\.10\.2.*update the server"):
        sampler_of(stub)(SAMPLES, 0)
    stub.script = [Reply("<html></html>", headers=(("content-type", "text/html"),))]
    with pytest.raises(InputError, match="correct the address"):
        sampler_of(stub)(SAMPLES[:1], 0)


@pytest.mark.parametrize(
    "answer", [choice([7, 9], "stop", 9), choice([7], "abort", None), choice([], "length", None)]
)  # fmt: skip
def test_an_end_that_was_not_asked_for_is_refused(stub, answer):
    stub.choices = {(4,): answer}
    with pytest.raises(InputError, match="--generation-config vllm"):
        sampler_of(stub)(SAMPLES, 0)


def test_no_server_a_refused_key_and_a_refused_request_are_said_in_one_line(stub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        absent = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(InputError, match="no connection"):
            VllmSampler(VllmServer(absent, "m", retries=0), tiny.tokenizer(), SAMPLING)(SAMPLES, 0)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    stub.script = [Reply(json.dumps({"error": {"message": f"bad key {KEY}"}}), 401)]
    with pytest.raises(InputError, match=r"bad key \[key\].*VLLM_API_KEY") as caught:
        sampler_of(stub)(SAMPLES[:1], 0)
    assert KEY not in str(caught.value)
    stub.script = [Reply(json.dumps({"error": {"message": "maximum context length is 4"}}), 400)]
    with pytest.raises(InputError, match="maximum context length is 4"):
        sampler_of(stub, retries=3)(SAMPLES[:1], 0)
    assert len(stub.seen) == 2  # neither is tried again


def test_what_cannot_work_is_refused_before_anything_is_asked(stub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="come together"):
        sampler_of(stub, student=tiny.model())
    with pytest.raises(ValueError, match="refresh_every"):
        sampler_of(stub, refresh_every=0)
    with pytest.raises(ValueError, match="at least one token"):
        sampler_of(stub)([Sample([], [END])], 0)
    with pytest.raises(InputError, match="base URL"):
        VllmServer("localhost:8000", "m")
    with pytest.raises(InputError, match="retries"):
        VllmServer(stub.url, "m", retries=-1)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match=r"2 ranks.*ModelSampler"):
        sampler_of(stub, student=tiny.model(), folder=tmp_path / "served")(SAMPLES, 0)
    assert stub.seen == []
    assert not (tmp_path / "served").exists()
    assert len(sampler_of(stub)(SAMPLES, 0)) == 3  # weights that stay as they are do not mind
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=re.escape("pip install 'gakd[vllm]'")):
        VllmServer(stub.url, "m")


def test_the_python_of_the_page_takes_the_place_of_a_recipes_sampler(stub, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {
        "student": tiny.model(), "tokenizer": tiny.tokenizer(), "sampling": SAMPLING,
        "config": SimpleNamespace(data=SimpleNamespace(max_length=8)), "run": SimpleNamespace(folder=tmp_path),
    }  # fmt: skip
    assert "http://localhost:8000/v1" in code
    exec(code.replace("http://localhost:8000/v1", stub.url), names)
    own_text = cast(VllmSampler, names["own_text"])
    window = [collate([sample.example for sample in SAMPLES], PAD)]
    (batch,) = resample(window, Mixture([(1.0, own_text), (0.0, dataset_sampler)]), 0, PAD)
    assert batch.labels_N.tolist() == [1, 2, 3, END, 4, END, 5, 6, END]
    assert own_text.truncated == 0
    assert stub.paths() == [RELOAD, RESET, COMPLETE, COMPLETE, COMPLETE]
