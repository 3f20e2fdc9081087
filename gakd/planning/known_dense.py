"""Published architectures of dense decoders: families of one configuration class, a row of sizes for each name.

What is not in a row or shared by its family is the class's own default, where that is what was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

COLUMNS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


class Family(NamedTuple):
    """A configuration class and its models: for each name the numbers of `columns`, and what else is its own behind them.

    `vision_config` there is an argument of the class that the text's configuration stands in.
    """

    config: str
    models: dict[str, tuple[Any, ...]]
    shared: Mapping[str, Any] = MappingProxyType({})
    columns: tuple[str, ...] = COLUMNS
    text_in: str = ""  # the class of a vision-language model whose `text_config` these are
    towers: Mapping[str, Any] = MappingProxyType({})  # its other arguments


TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896,
              "patch_size": 14, "vision_use_head": False}  # fmt: skip
PIXTRAL = {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
               "num_attention_heads": 16, "head_dim": 64, "image_size": 1540, "patch_size": 14}  # fmt: skip
QWEN_7B = {"tie_word_embeddings": False, "vocab_size": 152_064}

# fmt: off
DENSE = (
    Family("Qwen3Config", {
        "Qwen3-0.6B": (1024, 3072, 28, 16, 8, TIED),
        "Qwen3-1.7B": (2048, 6144, 28, 16, 8, TIED),
        "Qwen3-4B": (2560, 9728, 36, 32, 8, TIED),
        "Qwen3-8B": (4096, 12288, 36, 32, 8, UNTIED),
        "Qwen3-14B": (5120, 17408, 40, 40, 8, UNTIED),
        "Qwen3-32B": (5120, 25600, 64, 64, 8, UNTIED),
    }, {"vocab_size": 151_936, "head_dim": 128}),
    Family("Qwen2Config", {
        "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, TIED),
        "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, TIED),
        "Qwen2.5-3B": (2048, 11008, 36, 16, 2, TIED),
        "Qwen2.5-7B": (3584, 18944, 28, 28, 4, QWEN_7B),
        "Qwen2.5-14B": (5120, 13824, 48, 40, 8, QWEN_7B),
        "Qwen2.5-32B": (5120, 27648, 64, 40, 8, QWEN_7B),
        "Qwen2.5-72B": (8192, 29568, 80, 64, 8, QWEN_7B),
    }, {"vocab_size": 151_936}),
    Family("LlamaConfig", {
        "Llama-3.2-1B": (2048, 8192, 16, 32, 8, TIED),
        "Llama-3.2-3B": (3072, 8192, 28, 24, 8, TIED),
        "Llama-3-8B": (4096, 14336, 32, 32, 8, UNTIED),
        "Llama-3-70B": (8192, 28672, 80, 64, 8, UNTIED),
        "Llama-3.1-8B": (4096, 14336, 32, 32, 8, UNTIED),
        "Llama-3.1-70B": (8192, 28672, 80, 64, 8, UNTIED),
        "Llama-3.1-405B": (16384, 53248, 126, 128, 8, UNTIED),
        "Llama-3.3-70B": (8192, 28672, 80, 64, 8, UNTIED),
    }, {"vocab_size": 128_256}),
    Family("LlamaConfig", {
        "SmolLM2-135M": (576, 1536, 30, 9, 3),
        "SmolLM2-360M": (960, 2560, 32, 15, 5),
        "SmolLM2-1.7B": (2048, 8192, 24, 32, 32),
    }, {"vocab_size": 49_152, "tie_word_embeddings": True}),
    Family("SmolLM3Config", {"SmolLM3-3B": (2048, 11008, 36, 16, 4)}),
    Family("GPT2Config", {
        "gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25),
    }, columns=("n_embd", "n_layer", "n_head")),
    Family("GPTNeoXConfig", {
        "pythia-70m": (512, 2048, 6, 8, 50_304), "pythia-160m": (768, 3072, 12, 12, 50_304),
        "pythia-410m": (1024, 4096, 24, 16, 50_304), "pythia-1b": (2048, 8192, 16, 8, 50_304),
        "pythia-1.4b": (2048, 8192, 24, 16, 50_304), "pythia-2.8b": (2560, 10240, 32, 32, 50_304),
        "pythia-6.9b": (4096, 16384, 32, 32, 50_432), "pythia-12b": (5120, 20480, 36, 40, 50_688),
    }, columns=(*COLUMNS[:4], "vocab_size")),
    Family("Gemma2Config", {
        "gemma-2-2b": (2304, 9216, 26, 8, 4, {"head_dim": 256}),
        "gemma-2-9b": (3584, 14336, 42, 16, 8, {"head_dim": 256}),
        "gemma-2-27b": (4608, 36864, 46, 32, 16, {"head_dim": 128}),
    }),
    Family("Gemma3TextConfig", {
        "gemma-3-270m": (640, 2048, 18, 4, 1),
        "gemma-3-1b": (1152, 6912, 26, 4, 1),
    }, {"vocab_size": 262_144, "head_dim": 256, "sliding_window": 512}),
    Family("Gemma3TextConfig", {
        "gemma-3-4b": (2560, 10240, 34, 8, 4, {"head_dim": 256}),
        "gemma-3-12b": (3840, 15360, 48, 16, 8, {"head_dim": 256}),
        "gemma-3-27b": (5376, 21504, 62, 32, 16, {"head_dim": 128}),
    }, {"vocab_size": 262_208, "sliding_window": 1024}, text_in="Gemma3Config", towers={"vision_config": SIGLIP}),
    Family("MistralConfig", {
        "Mistral-7B-v0.1": (4096, 14336, 32, 32, 8, {"vocab_size": 32_000}),
        "Mistral-7B-v0.3": (4096, 14336, 32, 32, 8, {"vocab_size": 32_768}),
        "Ministral-8B": (4096, 12288, 36, 32, 8),
        "Mistral-Nemo": (5120, 14336, 40, 32, 8),
        "Mistral-Small-24B": (5120, 32768, 40, 32, 8),
    }, {"vocab_size": 131_072, "head_dim": 128}),
    Family("Ministral3Config", {
        "Ministral-3-3B": (3072, 9216, 26, 32, 8, TIED),
        "Ministral-3-8B": (4096, 14336, 34, 32, 8, UNTIED),
        "Ministral-3-14B": (5120, 16384, 40, 32, 8, UNTIED),
    }, {"vocab_size": 131_072, "head_dim": 128}, text_in="Mistral3Config", towers={"vision_config": PIXTRAL}),
    Family("Phi3Config", {
        "Phi-3-mini-4k": (3072, 8192, 32, 32, 32, {"vocab_size": 32_064}),
        "Phi-3.5-mini": (3072, 8192, 32, 32, 32, {"vocab_size": 32_064}),
        "Phi-4-mini": (3072, 8192, 32, 24, 8, {"vocab_size": 200_064, "tie_word_embeddings": True}),
        "phi-4": (5120, 17920, 40, 40, 10, {"vocab_size": 100_352}),
    }),
    Family("Olmo2Config", {
        "OLMo-2-0425-1B": (2048, 8192, 16, 16, 16), "OLMo-2-1124-7B": (4096, 11008, 32, 32, 32),
        "OLMo-2-1124-13B": (5120, 13824, 40, 40, 40), "OLMo-2-0325-32B": (5120, 27648, 64, 40, 8),
    }, {"vocab_size": 100_352}),
    Family("Olmo3Config", {
        "Olmo-3-1025-7B": (4096, 11008, 32, 32, 32), "Olmo-3-1125-32B": (5120, 27648, 64, 40, 8),
    }, {"vocab_size": 100_278}),
    Family("GraniteConfig", {
        "granite-3.3-2b": (2048, 8192, 40, 32, 8), "granite-3.3-8b": (4096, 12800, 40, 32, 8),
    }, {"vocab_size": 49_159, "tie_word_embeddings": True}),
)
