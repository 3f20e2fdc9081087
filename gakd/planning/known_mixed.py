"""Published architectures of mixtures of experts, hybrids and state-space models, in the same form as the dense ones."""

from __future__ import annotations

from typing import Any

from gakd.planning.known_dense import COLUMNS, TIED, Family

EXPERTS = (*COLUMNS, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
LOCAL_EXPERTS = (*COLUMNS, "num_local_experts", "num_experts_per_tok")
CONV, FULL = "conv", "full_attention"


def lfm(layers: int, attention: tuple[int, ...]) -> dict[str, Any]:
    """Short convolutions, and attention at some layers."""
    return {"layer_types": [FULL if at in attention else CONV for at in range(layers)]}


def eye(depth: int, width: int, out: int) -> dict[str, Any]:
    """Qwen3.5's vision tower."""
    heads, between = {768: (12, 3072), 1024: (16, 4096), 1152: (16, 4304)}[width]
    sizes = {
        "depth": depth,
        "hidden_size": width,
        "num_heads": heads,
        "intermediate_size": between,
        "out_hidden_size": out,
    }
    return {"vision_config": sizes}


LLAMA4_EYE = {"hidden_size": 1408, "intermediate_size": 5632, "num_hidden_layers": 34, "num_attention_heads": 16,
                  "vision_output_dim": 4096, "projector_input_dim": 4096, "projector_output_dim": 4096,
              "image_size": 336}  # fmt: skip
GEMMA4_EYE = {"model_type": "gemma4_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                  "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72, "standardize": True}  # fmt: skip
GEMMA4_SMALL = {"vision_config": {"model_type": "gemma4_vision", "use_clipped_linears": True},
                    "audio_config": {"model_type": "gemma4_audio"}}  # fmt: skip
NO_LAYER_INPUTS = {"hidden_size_per_layer_input": 0, "sliding_window": 1024, "attention_k_eq_v": True}

# fmt: off
MIXED = (
    Family("Qwen3MoeConfig", {
        "Qwen3-30B-A3B": (2048, 6144, 48, 32, 4, 128, 8, 768),
        "Qwen3-Coder-30B-A3B": (2048, 6144, 48, 32, 4, 128, 8, 768),
        "Qwen3-235B-A22B": (4096, 12288, 94, 64, 4, 128, 8, 1536),
        "Qwen3-Coder-480B-A35B": (6144, 8192, 62, 96, 8, 160, 8, 2560),
    }, {"vocab_size": 151_936, "head_dim": 128}, EXPERTS),
    Family("Qwen3NextConfig", {"Qwen3-Next-80B-A3B": (2048, 5632, 48, 16, 2, 512, 10, 512)}, columns=EXPERTS),
    Family("Qwen3_5TextConfig", {
        "Qwen3.5-0.8B": (1024, 3584, 24, 8, 2, 16, TIED | eye(12, 768, 1024)),
        "Qwen3.5-2B": (2048, 6144, 24, 8, 2, 16, TIED | eye(24, 1024, 2048)),
        "Qwen3.5-4B": (2560, 9216, 32, 16, 4, 32, TIED | eye(24, 1024, 2560)),
        "Qwen3.5-9B": (4096, 12288, 32, 16, 4, 32, eye(27, 1152, 4096)),
        "Qwen3.5-27B": (5120, 17408, 64, 24, 4, 48, eye(27, 1152, 5120)),
    }, columns=(*COLUMNS, "linear_num_value_heads"), text_in="Qwen3_5Config"),
    Family("Qwen3_5MoeTextConfig", {
        "Qwen3.5-35B-A3B": (2048, 40, 16, 2, 32, 256, 8, 512, 512, eye(27, 1152, 2048)),
        "Qwen3.5-122B-A10B": (3072, 48, 32, 2, 64, 256, 8, 1024, 1024, eye(27, 1152, 3072)),
        "Qwen3.5-397B-A17B": (4096, 60, 32, 2, 64, 512, 10, 1024, 1024, eye(27, 1152, 4096)),
    }, columns=("hidden_size", *COLUMNS[2:], "linear_num_value_heads", *EXPERTS[5:], "shared_expert_intermediate_size"),
       text_in="Qwen3_5MoeConfig"),
    Family("Gemma4TextConfig", {
        "gemma-4-E2B": (1536, 6144, 35, 8, 1, {"num_kv_shared_layers": 20, "use_double_wide_mlp": True,
                                                   "layer_types": (["sliding_attention"] * 4 + [FULL]) * 7}),
        "gemma-4-E4B": (2560, 10240, 42, 8, 2, {"num_kv_shared_layers": 18}),
    }, {"sliding_window": 512}, text_in="Gemma4Config", towers=GEMMA4_SMALL),
    Family("Gemma4TextConfig", {
        "gemma-4-31B": (5376, 21504, 60, 32, 16, {"num_global_key_value_heads": 4}),
        "gemma-4-26B-A4B": (2816, 2112, 30, 16, 8, {"num_global_key_value_heads": 2, "enable_moe_block": True, "num_experts": 128,
                                                        "top_k_experts": 8, "moe_intermediate_size": 704}),
    }, NO_LAYER_INPUTS, text_in="Gemma4Config", towers={"vision_config": GEMMA4_EYE}),
    Family("GptOssConfig", {
        "gpt-oss-20b": (2880, 2880, 24, 64, 8, 32, 4), "gpt-oss-120b": (2880, 2880, 36, 64, 8, 128, 4),
    }, columns=LOCAL_EXPERTS),
    Family("Llama4TextConfig", {
        "Llama-4-Scout-17B-16E": (5120, 8192, 48, 40, 8, 16, 1),
        "Llama-4-Maverick-17B-128E": (5120, 8192, 48, 40, 8, 128, 1, {"interleave_moe_layer_step": 2}),
    }, columns=LOCAL_EXPERTS, text_in="Llama4Config", towers={"vision_config": LLAMA4_EYE}),
    Family("MixtralConfig", {
        "Mixtral-8x7B": (4096, 14336, 32, 32, 8, 8, 2), "Mixtral-8x22B": (6144, 16384, 56, 48, 8, 8, 2, {"vocab_size": 32_768}),
    }, columns=LOCAL_EXPERTS),
    Family("PhimoeConfig", {"Phi-3.5-MoE": (4096, 6400, 32, 32, 8, 16, 2)}, {"attention_bias": True, "lm_head_bias": True},
           LOCAL_EXPERTS),
    Family("OlmoeConfig", {"OLMoE-1B-7B": (2048, 1024, 16, 16, 16, 64, 8)},
           columns=(*COLUMNS, "num_experts", "num_experts_per_tok")),
    Family("DeepseekV2Config", {"DeepSeek-V2-Lite": (2048, 10944, 27, 16, 16)},
           {"n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 512, "vocab_size": 102_400}),
    Family("DeepseekV3Config", {
        "DeepSeek-V3": (7168, 18432, 61, 128, 128), "DeepSeek-V3.1": (7168, 18432, 61, 128, 128),
        "DeepSeek-R1": (7168, 18432, 61, 128, 128),
    }),
    Family("Glm4MoeConfig", {"GLM-4.5-Air": (4096, 10944, 46, 96, 8)}, {"attention_bias": True, "head_dim": 128}),
    Family("Lfm2Config", {
        "LFM2-350M": (1024, 6656, 16, 16, 8, lfm(16, (2, 5, 8, 10, 12, 14))),
        "LFM2-700M": (1536, 10240, 16, 24, 8, lfm(16, (2, 5, 8, 10, 12, 14))),
        "LFM2-1.2B": (2048, 12288, 16, 32, 8, lfm(16, (2, 5, 8, 10, 12, 14))),
        "LFM2.5-1.2B": (2048, 12288, 16, 32, 8, lfm(16, (2, 5, 8, 10, 12, 14))),
    }),
    Family("Lfm2MoeConfig", {"LFM2-8B-A1B": (2048, 7168, 24, 32, 8, lfm(24, (2, 6, 10, 14, 18, 21)))}),
    Family("GraniteMoeHybridConfig", {
        "granite-4.0-h-micro": (2048, 8192, 40, 32, 8, {"num_local_experts": 0, "num_experts_per_tok": 0,
                                                            "shared_intermediate_size": 8192, "mamba_n_heads": 64}),
        "granite-4.0-h-tiny": (1536, 512, 40, 12, 4, {"num_local_experts": 64, "num_experts_per_tok": 6,
                                                          "shared_intermediate_size": 1024, "mamba_n_heads": 48}),
    }, {"vocab_size": 100_352, "tie_word_embeddings": True, "mamba_d_head": 64, "mamba_d_state": 128,
            "layer_types": ["full_attention" if at in (5, 15, 25, 35) else "mamba" for at in range(40)]}),
    Family("MambaConfig", {
        "mamba-130m": (768, 24), "mamba-370m": (1024, 48), "mamba-790m": (1536, 48), "mamba-1.4b": (2048, 48),
        "mamba-2.8b": (2560, 64),
    }, {"vocab_size": 50_280}, ("hidden_size", "num_hidden_layers")),
)
