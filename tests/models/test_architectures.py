"""Each architecture that transformers builds: right as its row of docs/models.md says, or refused for the reason there."""

from __future__ import annotations

import pytest

from tests.architecture_table import PAGE, examine, row_text, rows_of
from tests.architectures import ARCHITECTURES

# One of each kind; the others take five minutes.
QUICK = {
    "Qwen3", "GPT-2", "OPT", "Gemma 2", "Gemma 4 (text)", "Llama 4 (text)", "Mixtral", "DeepSeek-V3", "Falcon-H1", "Mamba",
    "Qwen3.5 (text)", "MiniMax", "RWKV", "Zamba", "MiniCPM3", "BERT (decoder)", "PaliGemma", "Qwen2.5-VL", "SmolVLM",
}  # fmt: skip


def test_the_page_has_each_architecture_once():
    assert list(rows_of(PAGE.read_text())) == list(ARCHITECTURES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_an_architecture_is_what_its_row_says(name):
    assert row_text(name, examine(name)) == rows_of(PAGE.read_text())[name], "python -m tests.architecture_table"
