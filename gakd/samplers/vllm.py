"""The student's own text from a vLLM server: token ids in and out, its weights read from a folder that the student wrote.

    server = VllmServer("http://localhost:8000/v1", "student")
    sampler = VllmSampler(server, tokenizer, sampling, max_length, student, folder="served")

A sampler as those of `gakd.samplers.protocol`, in place of ModelSampler where generation takes most of the step; docs/vllm.md has
the server's side. Sources: vLLM's documentation, read when v0.32 was its newest release: `return_token_ids` and the
sampling fields of /v1/completions (serving/openai_compatible_server); `reload_weights` with a `weights_path`
(training/layerwise, "Mid Level reload_weights API"); POST /collective_rpc under VLLM_SERVER_DEV_MODE=1 (features/sleep_mode);
POST /reset_prefix_cache (usage/security, "Development endpoints").
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import distributed, nn
from transformers import PreTrainedTokenizerBase

from gakd.data.ends import end_ids
from gakd.errors import InputError
from gakd.extras import Need, check_needs
from gakd.models.export import write_folder
from gakd.run.exchange import several
from gakd.samplers.config import Sampling
from gakd.samplers.endpoint_answers import judge
from gakd.samplers.endpoint_config import EndpointConfig
from gakd.samplers.generation import check_prompts
from gakd.samplers.protocol import Sample
from gakd.seeds import seed_of

if TYPE_CHECKING:
    from openai import OpenAI

# A server fills what it is not told from the checkpoint's generation config (top-k 20 at Qwen3), and stops at its tokens.
NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,  # the ends are those of stop_token_ids
}


class Completion(NamedTuple):
    """What the server wrote after one prompt."""

    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None  # the token or text that it stopped at, where the server says


class VllmServer:
    """A vLLM server at `base_url`, such as http://localhost:8000/v1, that serves `model`.

    What fails for a reason that passes (connection, timeout, 408, 409, 429, 5xx) is tried again up to `retries` times with
    growing waits. The key is read from the environment variable that `key_variable` names when a request is made, and kept
    nowhere; a server without keys needs none. Raises InputError without the client (`pip install 'gakd[vllm]'`), for an
    address that is none, and for what the server refuses or does not answer within `timeout` seconds.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 4,
        key_variable: str = "VLLM_API_KEY",
    ) -> None:
        _client_library()
        if retries < 0:
            raise InputError(f"retries are at least 0, got {retries}: 0 asks once")
        self.model, self.retries = model, retries
        self._config = EndpointConfig(
            base_url, model, concurrency=concurrency, timeout=timeout, key_variable=key_variable
        )

    def complete(self, bodies: Sequence[dict[str, Any]]) -> list[Completion]:
        """One completion to each request body, in their order, with at most `concurrency` requests under way."""
        with self._client() as client, ThreadPoolExecutor(self._config.concurrency) as pool:
            return list(pool.map(partial(self._complete, client), bodies))

    def reload(self, folder: Path) -> None:
        """Replace the weights by those of a model folder that the server sees under the same path, and forget cached prefixes."""
        root = self._config.base_url.rstrip("/").removesuffix("/v1")
        advice = f"its weights are not the student's: start it with VLLM_SERVER_DEV_MODE=1, where {folder} is the same folder"
        with self._client() as client:
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._post(client, f"{root}/collective_rpc", body, advice)
            self._post(client, f"{root}/reset_prefix_cache", {}, advice)

    def _client(self) -> OpenAI:
        config = self._config
        return _client_library().OpenAI(
            base_url=config.base_url, api_key=config.key() or "none", timeout=config.timeout, max_retries=self.retries
        )

    def _complete(self, client: OpenAI, body: dict[str, Any]) -> Completion:
        asked = {"model": self.model, "return_token_ids": True, **body}
        answer = self._post(client, "/completions", asked, "nothing was sampled")
        try:
            (choice,) = answer["choices"]
            ids = choice["token_ids"]
            if not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
                raise TypeError
            return Completion(ids, choice.get("finish_reason"), choice.get("stop_reason"))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{self._config.base_url} answers without token ids: a completion with `return_token_ids` has them since "
                "vLLM 0.10.2; update the server, or correct the address"
            ) from None

    def _post(self, client: OpenAI, url: str, body: dict[str, Any], advice: str) -> Any:
        try:
            return client.post(url, body=body, cast_to=object)
        except Exception as error:  # over an odd answer a client raises more than its own errors
            problem = judge(error, self._config).problem
        raise InputError(f"{self._config.base_url}, asked for {url}: {problem}; {advice}")


class VllmSampler:
    """Responses that a vLLM server writes, by default with the weights that `student` has at that step.

    Each prompt is a request of its own, in token ids, with a seed of its own: vLLM gives the seed of a request to every
    prompt in it, so prompts that shared a request would be drawn with the same random numbers. Seeds are a function of
    the seed of `sampling`, the step and the prompt's place; whether equal seeds give equal text is up to the server, whose
    batching changes the rounding (usage/reproducibility). An end is kept and becomes a label; a response ends
    at `max_length` tokens of prompt and response at the latest. `truncated` is the share of the last call's responses
    that were cut.

    The student (LoRA merged into a copy) is written into `folder` and read by the server at the first call, and then at the
    first call in each `refresh_every` steps. InputError under several ranks: they would have to agree on who writes and
    when. Without a student the server keeps its weights, and any number of ranks may ask.
    """

    def __init__(
        self,
        server: VllmServer,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        max_length: int | None = None,
        student: nn.Module | None = None,
        folder: str | Path | None = None,
        refresh_every: int = 1,
    ) -> None:
        if (student is None) != (folder is None) or refresh_every < 1:
            raise ValueError(
                "a student and the folder of its weights come together, refresh_every is at least 1, got a student: "
                f"{student is not None}, {folder=} and {refresh_every=}"
            )
        self.server, self.tokenizer, self.sampling, self.max_length = server, tokenizer, sampling, max_length
        self.student, self.refresh_every = student, refresh_every
        self.folder = None if folder is None else Path(folder).resolve()  # the server has a working folder of its own
        self.truncated = 0.0
        self._period: int | None = None  # the steps // refresh_every that the server's weights are of
        self._served: Path | None = None

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        prompts = [sample.prompt_ids for sample in samples]
        check_prompts(prompts)
        ends = end_ids(self.tokenizer, *filter(None, [self.student]))
        if self.student is not None and self.folder is not None and self._period != step // self.refresh_every:
            self._refresh(self.student, self.folder, step)
        draw = random.Random(seed_of(self.sampling.seed, step))
        bodies = [self._body(prompt, draw.getrandbits(63), ends) for prompt in prompts]  # vLLM's seeds are int64
        completions = self.server.complete(bodies)
        answered = [
            Sample(prompt, _response(completion, ends)[: body["max_tokens"]])
            for prompt, body, completion in zip(prompts, bodies, completions, strict=True)
        ]
        self.truncated = sum(sample.response_ids[-1] not in ends for sample in answered) / max(len(answered), 1)
        return answered

    def _body(self, prompt: list[int], seed: int, ends: list[int]) -> dict[str, Any]:
        sampling = self.sampling
        room = sampling.max_new_tokens if self.max_length is None else max(self.max_length - len(prompt), 1)
        return {
            "prompt": prompt,
            "max_tokens": min(sampling.max_new_tokens, room),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stop_token_ids": ends,
            **NEUTRAL,
        }

    def _refresh(self, student: nn.Module, folder: Path, step: int) -> None:
        if several():
            raise InputError(
                f"one rank can refresh a server's weights, got {distributed.get_world_size()} ranks: run on one device, or "
                "sample with ModelSampler"
            )
        ends = end_ids(self.tokenizer, student)
        # Another path each time: no cache by path, the server's or a network file system's, gives old weights for new.
        written = write_folder(student, self.tokenizer, folder / f"step-{step}", ends, prove=False)
        self.server.reload(written)
        if self._served is not None and self._served != written:
            shutil.rmtree(self._served, ignore_errors=True)
        self._served, self._period = written, step // self.refresh_every


def _response(completion: Completion, ends: Sequence[int]) -> list[int]:
    """The response as a label: with its end where it came to one, whether or not the server counts that as text."""
    ids, reason, stop = completion
    if reason == "stop" and (stop is None or stop in ends):
        return ids if ids and ids[-1] in ends else [*ids, ends[0] if stop is None else int(stop)]
    if reason == "length" and ids:
        return ids
    raise InputError(
        f"a response ends at one of the tokens {list(ends)} or at its limit, the server ended one with {reason!r} at {stop!r} "
        f"after {len(ids)} tokens: start it with --generation-config vllm, and let nobody else pause it"
    )


def _client_library() -> ModuleType:
    check_needs([Need("a vLLM server", ("openai",), "vllm", "let the student write here")])
    import openai

    return openai
