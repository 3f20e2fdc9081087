"""Architectures known by name, against the sizes that were published with their weights."""

from __future__ import annotations

import pytest

from gakd.planning.footprint import shape
from gakd.planning.known_models import known_config, known_names
from gakd.planning.layers import build
from gakd.planning.weights import Adapters

# Billions of parameters: of the safetensors files on the hub where they are given to the digit, else of the model's card.
PUBLISHED = {
    "Qwen3-0.6B": 0.596049920, "Qwen3-1.7B": 1.720574976, "Qwen3-4B": 4.022468096, "Qwen3-8B": 8.190735360,
    "Qwen3-14B": 14.768307200, "Qwen3-32B": 32.762123264,
    "Qwen2.5-0.5B": 0.494032768, "Qwen2.5-1.5B": 1.543714304, "Qwen2.5-3B": 3.085938688, "Qwen2.5-7B": 7.615616512,
    "Qwen2.5-14B": 14.770033664, "Qwen2.5-32B": 32.763876352, "Qwen2.5-72B": 72.706203648,
    "Llama-3.2-1B": 1.235814400, "Llama-3.2-3B": 3.212749824, "Llama-3-8B": 8.030261248, "Llama-3-70B": 70.553706496,
    "Llama-3.1-8B": 8.030261248, "Llama-3.1-70B": 70.553706496, "Llama-3.1-405B": 405.853388800,
    "Llama-3.3-70B": 70.553706496,
    "SmolLM2-135M": 0.134515008, "SmolLM2-360M": 0.361821120, "SmolLM2-1.7B": 1.711376384, "SmolLM3-3B": 3.075098624,
    "gpt2": 0.124439808, "gpt2-medium": 0.354823168, "gpt2-large": 0.774030080, "gpt2-xl": 1.557611200,
    "pythia-70m": 0.070426624, "pythia-160m": 0.162322944, "pythia-410m": 0.405334016, "pythia-1b": 1.011781632,
    "pythia-1.4b": 1.414647808, "pythia-2.8b": 2.775208960, "pythia-6.9b": 6.857302016, "pythia-12b": 11.846072320,
    "gemma-2-2b": 2.614341888, "gemma-2-9b": 9.241705984, "gemma-2-27b": 27.227128320,
    "gemma-3-270m": 0.268098176, "gemma-3-1b": 0.999885952, "gemma-3-4b": 4.300079472, "gemma-3-12b": 12.187325040,
    "gemma-3-27b": 27.432406640,
    # Cards: 30.7 and 25.2 of text, and 0.55 of a vision tower.
    "gemma-4-E2B": 5.1, "gemma-4-E4B": 8.0, "gemma-4-31B": 31.25, "gemma-4-26B-A4B": 25.75,
    "Mistral-7B-v0.1": 7.241732096, "Mistral-7B-v0.3": 7.248023552, "Ministral-8B": 8.019808256,
    "Mistral-Nemo": 12.247782400, "Mistral-Small-24B": 23.572403200,
    # Cards: 3.4, 8.4 and 13.5 of text, and 0.4 of a vision tower.
    "Ministral-3-3B": 3.849090048, "Ministral-3-8B": 8.918026240, "Ministral-3-14B": 13.945031680,
    "Phi-3-mini-4k": 3.821079552, "Phi-3.5-mini": 3.821079552, "Phi-4-mini": 3.836021760, "phi-4": 14.659507200,
    "Phi-3.5-MoE": 41.873153344,
    "OLMo-2-0425-1B": 1.484916736, "OLMo-2-1124-7B": 7.298617344, "OLMo-2-1124-13B": 13.716198400,
    "OLMo-2-0325-32B": 32.234279936, "Olmo-3-1025-7B": 7.298011136, "Olmo-3-1125-32B": 32.2, "OLMoE-1B-7B": 6.919161856,
    "granite-3.3-2b": 2.53, "granite-3.3-8b": 8.17, "granite-4.0-h-micro": 3.19, "granite-4.0-h-tiny": 6.94,
    "Qwen3-30B-A3B": 30.532122624, "Qwen3-Coder-30B-A3B": 30.532122624, "Qwen3-235B-A22B": 235.093634560,
    "Qwen3-Coder-480B-A35B": 480.154875392, "Qwen3-Next-80B-A3B": 80.0,
    "gpt-oss-20b": 20.9, "gpt-oss-120b": 116.8,
    "Llama-4-Scout-17B-16E": 108.641793536, "Llama-4-Maverick-17B-128E": 401.583781376,
    "Mixtral-8x7B": 46.702792704, "Mixtral-8x22B": 140.630071296,
    "DeepSeek-V2-Lite": 15.706484224, "DeepSeek-V3": 671.0, "DeepSeek-V3.1": 671.0, "DeepSeek-R1": 671.0,
    "GLM-4.5-Air": 106.0,
    "LFM2-350M": 0.354483968, "LFM2-700M": 0.742489344, "LFM2-1.2B": 1.170340608, "LFM2.5-1.2B": 1.170340608,
    "LFM2-8B-A1B": 8.34,
    "mamba-130m": 0.129135360, "mamba-370m": 0.371516416, "mamba-790m": 0.793204224, "mamba-1.4b": 1.372178432,
    "mamba-2.8b": 2.768345600,
}  # fmt: skip
# Their files hold layers that predict further tokens besides (mtp), 1 to 3%, which transformers does not load.
WITH_FURTHER_TOKENS = {
    "Qwen3.5-0.8B": 0.873, "Qwen3.5-2B": 2.274, "Qwen3.5-4B": 4.660, "Qwen3.5-9B": 9.653, "Qwen3.5-27B": 27.781,
    "Qwen3.5-35B-A3B": 35.952, "Qwen3.5-122B-A10B": 125.09, "Qwen3.5-397B-A17B": 403.40,
}  # fmt: skip
# Cards of gpt-oss and DeepSeek leave out the table of embeddings, that of Gemma the vision tower, as is done here.
ACTIVE = {
    "Qwen3-30B-A3B": 3.3, "Qwen3-235B-A22B": 22, "Mixtral-8x7B": 12.9, "Mixtral-8x22B": 39, "Phi-3.5-MoE": 6.6,
    "OLMoE-1B-7B": 1.3, "gpt-oss-20b": 3.6, "gpt-oss-120b": 5.1, "DeepSeek-V2-Lite": 2.4, "DeepSeek-V3": 37,
    "Llama-4-Scout-17B-16E": 17, "gemma-4-26B-A4B": 3.8, "LFM2-8B-A1B": 1.5,
}  # fmt: skip
WITHOUT_TABLE = {"gpt-oss-20b", "gpt-oss-120b", "DeepSeek-V2-Lite", "DeepSeek-V3"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_architectures_have_their_published_number_of_parameters(name):
    config = known_config(name)
    assert config is not None
    counted = sum(parameter.numel() for parameter in build(config).parameters()) / 1e9
    assert counted == pytest.approx(PUBLISHED[name], rel=0.01)
    if round(PUBLISHED[name], 4) != PUBLISHED[name]:  # given to the digit
        assert counted == pytest.approx(PUBLISHED[name], rel=1e-8)


@pytest.mark.parametrize("name", WITH_FURTHER_TOKENS)
def test_known_architectures_lack_further_tokens_alone(name):
    config = known_config(name)
    assert config is not None
    counted = sum(parameter.numel() for parameter in build(config).parameters()) / 1e9
    assert 0.97 * WITH_FURTHER_TOKENS[name] < counted < WITH_FURTHER_TOKENS[name]


@pytest.mark.parametrize(
    "name", [name if name == "Qwen3-30B-A3B" else pytest.param(name, marks=pytest.mark.slow) for name in ACTIVE]
)
def test_as_many_parameters_are_active_as_published(name):
    config = known_config(name)
    assert config is not None
    counted = shape(config, (), Adapters())[0]
    table = counted.embedding if name in WITHOUT_TABLE else 0
    assert (counted.active - table) / 1e9 == pytest.approx(ACTIVE[name], rel=0.04)


def test_every_known_name_is_tested():
    assert {*PUBLISHED, *WITH_FURTHER_TOKENS} == set(known_names())


@pytest.mark.parametrize(
    ("plain", "dressed"),
    [
        ("Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        ("gemma-3-4b", "google/gemma-3-4b-it"),
        ("Mixtral-8x7B", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("Ministral-3-8B", "mistralai/Ministral-3-8B-Instruct-2512"),
        ("DeepSeek-R1", "deepseek-ai/DeepSeek-R1-0528"),
    ],
)
def test_known_names_lose_owner_and_what_says_of_training(plain, dressed):
    configs = [known_config(name) for name in (plain, dressed)]
    assert configs[0] is not None
    assert configs[1] is not None
    assert configs[0].to_dict() == configs[1].to_dict()


@pytest.mark.parametrize(
    "name", ["Qwen9-1B", "Qwen3-8B-GGUF", "DeepSeek-R1-Distill-Qwen-7B", "Qwen3", "Llama-3.2-1B-Vision"]
)
def test_other_models_of_a_known_beginning_are_not_known(name):
    assert known_config(name) is None
