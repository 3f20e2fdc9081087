"""Talk to a student in the terminal, its teacher's answer below its own.

gakd chat runs/gakd/student --teacher Qwen3-8B

/quit, an empty line or Ctrl-D ends. Lines may be piped: echo "What is a prime?" | gakd chat runs/gakd/student
The model's chat template sets the conversation; a model without one continues each line as plain text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gakd.flags import SEED, check
from gakd.samplers.config import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class ChatConfig:
    student: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT")]
    """Who is talked to: a folder such as runs/gakd/student, a hub id or a name such as Qwen3-0.6B."""
    teacher: str | None = None
    """Who answers the same below: each goes on with its own answers."""
    system: str | None = None
    """A system prompt, for a template that has one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and arithmetic; auto: bfloat16 on a GPU, else float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""
    sampling: Sampling = field(default_factory=Sampling)


def main(config: ChatConfig) -> None:
    """Answer each line, as long as there are some."""
    check(config, {"seed": SEED})
    import torch

    names = [name for name in (config.student, config.teacher) if name is not None]
    print(f"Loading {', '.join(names)}", file=sys.stderr, flush=True)
    speakers = [Speaker(name, config) for name in names]
    torch.manual_seed(config.sampling.seed)
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it as Ctrl-D does, in the middle of an answer too
        for line in lines():
            for name, speaker in zip(("student", "teacher"), speakers, strict=False):
                if len(speakers) > 1:
                    print(f"{name}: ", end="", flush=True)
                speaker.answer(line)


def lines() -> Iterator[str]:
    """What is typed or piped, up to /quit, an empty line or the end."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        if line in ("", "/quit"):
            return
        yield line


class Speaker:
    """A model and its own side of the conversation."""

    def __init__(self, name: str, config: ChatConfig) -> None:
        import torch

        from gakd.models.loading import load_model, load_tokenizer, window_of_config

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(name, config.trust_remote_code)
        self.model: Any = load_model(name, getattr(torch, dtype), None, config.trust_remote_code, device)
        self.sampling, self.window = config.sampling, window_of_config(self.model.config)
        self._messages = [] if config.system is None else [{"role": "system", "content": config.system}]
        self._first = len(self._messages)

    def answer(self, line: str) -> str:
        """Print the answer while it is written, and keep it for the lines to come, where there is a template for both."""
        import torch
        from transformers import TextStreamer

        from gakd.data.ends import end_ids

        ids_BT = self._prompt(line).to(self.model.device)
        sampling, streamer = self.sampling, TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        drawn = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        with torch.inference_mode():
            written: Any = self.model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), streamer=streamer, max_new_tokens=sampling.max_new_tokens,
                do_sample=bool(drawn), eos_token_id=end_ids(self.tokenizer, self.model),
                pad_token_id=self.tokenizer.pad_token_id, **drawn,
            )  # fmt: skip
        text = str(self.tokenizer.decode(written[0, ids_BT.shape[1] :], skip_special_tokens=True))
        self._messages.append({"role": "assistant", "content": text})
        return text

    def _prompt(self, line: str) -> Any:
        """Token ids [1, T] of what was said, or of the line alone where the model has no template.

        The oldest lines and their answers are forgotten where the next one has no room in the model's window.
        """
        if not self.tokenizer.chat_template:
            return self.tokenizer(line, return_tensors="pt")["input_ids"]
        self._messages.append({"role": "user", "content": line})
        ids_BT = self._rendered()
        room = None if self.window is None else self.window - self.sampling.max_new_tokens
        while room is not None and ids_BT.shape[1] > room and len(self._messages) > self._first + 1:
            del self._messages[self._first : self._first + 2]
            ids_BT = self._rendered()
        return ids_BT

    def _rendered(self) -> Any:
        asked: Any = self.tokenizer.apply_chat_template(
            self._messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        return asked["input_ids"]
