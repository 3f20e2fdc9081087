"""Tiny random models of the architectures that transformers can build: what tests and the page of supported models run.

A row names the configuration class of a family and what is special about it; the sizes that most share are in `SIZES`.
Numbers that a careless copy of a model could lose (a soft cap, a multiplier, a window) are far from those that change
nothing, and each kind of layer that a family mixes occurs.
"""

from __future__ import annotations

import dataclasses
from inspect import signature
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedConfig, PreTrainedModel

from gakd.models.loading import kind_of

WRITTEN_FOR = Version("5.23.0")  # of transformers, which has every family

Row = tuple[str, dict[str, Any]]
"""The class of a configuration, by its name in transformers, and its arguments; an argument may be a row itself."""


def row(config_class: str, **arguments: Any) -> Row:
    return config_class, arguments


def rope(rope_type: str = "default", **parameters: Any) -> dict[str, Any]:
    """The argument for rotary positions, with what is not as usual."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0} | parameters}


def seeing(config_class: str, text: str | Row, vision: Row, **arguments: Any) -> Row:
    """A language model behind a vision tower; one that has a row of its own goes by its name."""
    text_config = ARCHITECTURES[text] if isinstance(text, str) else text
    return row(config_class, text_config=text_config, vision_config=vision, **arguments)


# fmt: off
# A configuration gets those of these that its class has a field or an alias for; its row's arguments go before them.
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "sliding_window": 4,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "image_token_id": 90, "video_token_id": 91,
}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
ALTERNATING = {"layer_types": [SLIDING, FULL] * 2}
GEMMA = ALTERNATING | {"head_dim": 16, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 4}
ONE_DENSE = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
MLA = {  # latent attention: all heads have keys of their own
    "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
GROUPED = {  # experts in groups, after a first dense layer
    "n_shared_experts": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1,
}
DELTA_NET = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": [LINEAR, FULL] * 2,
}
INDEXER = {"index_topk": 4, "index_n_heads": 16, "index_head_dim": 8}
GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 0.4,
}
MAMBA1 = {"mamba_d_state": 4, "mamba_dt_rank": 4}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 4}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "image_size": 16, "patch_size": 8,
}
QWEN_VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
}
QWEN3_VISION = QWEN_VISION | {"num_position_embeddings": 16}
CLIP, PIXTRAL = row("CLIPVisionConfig", **VISION), row("PixtralVisionConfig", **VISION)
SIGLIP = row("SiglipVisionConfig", **VISION, vision_use_head=False)
PARTIAL_ROPE, SECTIONS = rope(partial_rotary_factor=0.75), rope(mrope_section=[2, 1, 1])

ARCHITECTURES: dict[str, Row] = {
    "Llama": row("LlamaConfig",
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "Llama 4 (text)": row("Llama4TextConfig", intermediate_size_mlp=40, interleave_moe_layer_step=2,
        num_experts_per_tok=1, attention_chunk_size=4, floor_scale=4),
    "Mistral": row("MistralConfig"),
    "Ministral": row("MinistralConfig", **ALTERNATING),
    "Ministral 3": row("Ministral3Config", head_dim=16,
        **rope("yarn", factor=4.0, original_max_position_embeddings=4, llama_4_scaling_beta=0.5)),
    "Mixtral": row("MixtralConfig"),
    "Qwen2": row("Qwen2Config", tie_word_embeddings=True, use_sliding_window=True, max_window_layers=2),
    "Qwen2-MoE": row("Qwen2MoeConfig", shared_expert_intermediate_size=40, mlp_only_layers=[0]),
    "Qwen3": row("Qwen3Config", tie_word_embeddings=True, head_dim=16),
    "Qwen3-MoE": row("Qwen3MoeConfig", mlp_only_layers=[0], norm_topk_prob=True),
    "Qwen3-Next": row("Qwen3NextConfig", **DELTA_NET, shared_expert_intermediate_size=40, mlp_only_layers=[1],
        **PARTIAL_ROPE),
    "Qwen3.5 (text)": row("Qwen3_5TextConfig", **DELTA_NET, head_dim=16, tie_word_embeddings=True,
        **rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1])),
    "Qwen3.5-MoE (text)": row("Qwen3_5MoeTextConfig", **DELTA_NET, head_dim=16, shared_expert_intermediate_size=40,
        **rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1])),
    "Gemma": row("GemmaConfig", head_dim=16),
    "Gemma 2": row("Gemma2Config", **GEMMA, attn_logit_softcapping=2.0),
    "Gemma 3 (text)": row("Gemma3TextConfig", **GEMMA),
    "Gemma 3n (text)": row("Gemma3nTextConfig", **ALTERNATING, final_logit_softcapping=3.0,
        vocab_size_per_layer_input=97, hidden_size_per_layer_input=8, altup_num_inputs=2, num_kv_shared_layers=2,
        laurel_rank=8, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0]),
    "Gemma 4 (text)": row("Gemma4TextConfig", **ALTERNATING, final_logit_softcapping=3.0, global_head_dim=16,
        vocab_size_per_layer_input=97, hidden_size_per_layer_input=8, num_kv_shared_layers=2, use_double_wide_mlp=True),
    "Gemma 4 MoE (text)": row("Gemma4TextConfig", **ALTERNATING, final_logit_softcapping=3.0, global_head_dim=16,
        hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True,
        top_k_experts=2),
    "VaultGemma": row("VaultGemmaConfig", **GEMMA, attn_logit_softcapping=2.0),
    "RecurrentGemma": row("RecurrentGemmaConfig", block_types=["recurrent", "attention"], logits_soft_cap=3.0,
        num_key_value_heads=1),
    "Phi": row("PhiConfig", **PARTIAL_ROPE, qk_layernorm=True),
    "Phi-3": row("Phi3Config", **PARTIAL_ROPE),
    "Phi-4-multimodal": row("Phi4MultimodalConfig", **PARTIAL_ROPE,
        vision_config=row("Phi4MultimodalVisionConfig", **VISION, crop_size=16),
        audio_config=row("Phi4MultimodalAudioConfig", hidden_size=16, intermediate_size=16, num_blocks=1,
            num_attention_heads=2, nemo_conv_channels=8, ext_pw_out_channel=16)),
    "PhiMoE": row("PhimoeConfig", lm_head_bias=True, attention_bias=True),
    "Granite": row("GraniteConfig", **GRANITE, tie_word_embeddings=True),
    "GraniteMoE": row("GraniteMoeConfig", **GRANITE, tie_word_embeddings=True),
    "GraniteMoEShared": row("GraniteMoeSharedConfig", **GRANITE, tie_word_embeddings=True, shared_intermediate_size=40),
    "GraniteMoEHybrid": row("GraniteMoeHybridConfig", **GRANITE, **MAMBA2, tie_word_embeddings=True,
        shared_intermediate_size=40, layer_types=[LINEAR, FULL] * 2),
    "Granite SWA": row("GraniteSWAConfig", **GRANITE, **ALTERNATING),
    "Cohere": row("CohereConfig", logit_scale=1.5, use_qk_norm=True),
    "Cohere 2": row("Cohere2Config", **ALTERNATING, logit_scale=1.5),
    "Cohere 2 MoE": row("Cohere2MoeConfig", **ALTERNATING, logit_scale=1.5, num_shared_experts=1, **ONE_DENSE),
    "OLMo": row("OlmoConfig", clip_qkv=1.0),
    "OLMo 2": row("Olmo2Config"),
    "OLMo 3": row("Olmo3Config", **ALTERNATING),
    "OLMo Hybrid": row("OlmoHybridConfig", **DELTA_NET),
    "OLMoE": row("OlmoeConfig", clip_qkv=1.0),
    "SmolLM3": row("SmolLM3Config", no_rope_layers=[1, 0, 1, 0]),
    "StableLM": row("StableLmConfig", use_qkv_bias=True, qk_layernorm=True, **PARTIAL_ROPE),
    "StarCoder2": row("Starcoder2Config"),
    "GPT-2": row("GPT2Config"),
    "GPT-Neo": row("GPTNeoConfig", attention_types=[[["global", "local"], 2]], window_size=4),
    "GPT-NeoX": row("GPTNeoXConfig", **PARTIAL_ROPE),
    "GPT-NeoX-Japanese": row("GPTNeoXJapaneseConfig", **PARTIAL_ROPE),
    "GPT-J": row("GPTJConfig", rotary_dim=4),
    "GPTBigCode": row("GPTBigCodeConfig"),
    "CodeGen": row("CodeGenConfig", rotary_dim=4),
    "OpenAI GPT": row("OpenAIGPTConfig"),
    "gpt-oss": row("GptOssConfig", **ALTERNATING),
    "OPT": row("OPTConfig", ffn_dim=48),
    "OPT (projected)": row("OPTConfig", ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "BLOOM": row("BloomConfig"),
    "MPT": row("MptConfig"),
    "MPT (logit scale)": row("MptConfig", logit_scale=2.0),
    "Falcon": row("FalconConfig"),
    "Falcon (new decoder)": row("FalconConfig", new_decoder_architecture=True, num_kv_heads=2,
        tie_word_embeddings=False),
    "Falcon (ALiBi)": row("FalconConfig", alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "Falcon-H1": row("FalconH1Config", **MAMBA2, mamba_d_ssm=64, lm_head_multiplier=2.0, embedding_multiplier=3.0,
        key_multiplier=2.0, attention_in_multiplier=2.0, attention_out_multiplier=0.5, ssm_in_multiplier=2.0,
        ssm_out_multiplier=0.5, mlp_multipliers=[2.0, 0.5], ssm_multipliers=[2.0, 0.5, 2.0, 0.5, 2.0]),
    "Falcon-Mamba": row("FalconMambaConfig", state_size=4, time_step_rank=4),
    "Mamba": row("MambaConfig", state_size=4, time_step_rank=4),
    "Mamba 2": row("Mamba2Config", state_size=8, num_heads=8, n_groups=2, chunk_size=4),
    "Bamba": row("BambaConfig", **MAMBA2, attn_layer_indices=[1, 3]),
    "Jamba": row("JambaConfig", **MAMBA1, attn_layer_period=2, attn_layer_offset=1),
    "Zamba": row("ZambaConfig", **MAMBA1, num_key_value_heads=4, head_dim=16,
        layers_block_type=[LINEAR, "hybrid"] * 2),
    "Zamba2": row("Zamba2Config", mamba_d_state=8, mamba_ngroups=2, n_mamba_heads=4, chunk_size=4, adapter_rank=4,
        num_mem_blocks=2, num_key_value_heads=4, layers_block_type=[LINEAR, "hybrid"] * 2),
    "xLSTM": row("xLSTMConfig", hidden_size=64, qk_dim_factor=1.0, num_heads=4,
        ffn_round_up_to_multiple_of=8, output_logit_soft_cap=3.0),
    "RWKV": row("RwkvConfig"),
    "Nemotron": row("NemotronConfig", **PARTIAL_ROPE),
    "Nemotron-H": row("NemotronHConfig", layers_block_type=[LINEAR, "moe", FULL, "mlp"], mamba_num_heads=4,
        mamba_head_dim=16, n_groups=2, ssm_state_size=8, chunk_size=4, moe_shared_expert_intermediate_size=40,
        routed_scaling_factor=1.5),
    "DeepSeek-V2": row("DeepseekV2Config", **MLA, **GROUPED, topk_method="group_limited_greedy"),
    "DeepSeek-V3": row("DeepseekV3Config", **MLA, **GROUPED),
    "DeepSeek-V3.2": row("DeepseekV32Config", **MLA, **GROUPED, **INDEXER),
    "DeepSeek-V4": row("DeepseekV4Config", **INDEXER, num_key_value_heads=1, q_lora_rank=12, head_dim=16, o_groups=2,
        o_lora_rank=8, hc_mult=2, compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}),
    "Youtu": row("YoutuConfig", **MLA, initializer_range=0.02, pad_token_id=None),
    "LongCat-Flash": row("LongcatFlashConfig", **MLA, head_dim=4, num_layers=2, n_routed_experts=4, zero_expert_num=2,
        routed_scaling_factor=1.5),
    "Kimi Linear": row("KimiLinearConfig", **MLA, layer_types=[LINEAR, FULL] * 2, linear_head_dim=8,
        linear_num_heads=4, routed_scaling_factor=1.5),
    "A.X K1": row("AXK1Config", **MLA, **GROUPED),
    "Ling 2.5": row("BailingHybridConfig", **MLA, **GROUPED, layer_types=[LINEAR, FULL] * 2),
    "MiniCPM3": row("MiniCPM3Config", **MLA, scale_emb=3, scale_depth=2.8, dim_model_base=64),
    "MiniMax": row("MiniMaxConfig", layer_types=[LINEAR, FULL] * 2, block_size=4, full_attn_alpha_factor=1.5,
        full_attn_beta_factor=0.5, linear_attn_alpha_factor=1.5, linear_attn_beta_factor=0.5, mlp_alpha_factor=1.5,
        mlp_beta_factor=0.5),
    "MiniMax-M2": row("MiniMaxM2Config", **PARTIAL_ROPE),
    "MiniMax-M3 (text)": row("MiniMaxM3VLTextConfig", **ONE_DENSE, dense_intermediate_size=48,
        shared_intermediate_size=40, routed_scaling_factor=1.5),
    "MiMo-V2-Flash": row("MiMoV2FlashConfig", **ALTERNATING, v_head_dim=4, **ONE_DENSE, attention_value_scale=0.7),
    "GLM": row("GlmConfig", **PARTIAL_ROPE),
    "GLM-4": row("Glm4Config", **PARTIAL_ROPE),
    "GLM4-MoE": row("Glm4MoeConfig", **GROUPED, use_qk_norm=True, **PARTIAL_ROPE),
    "GLM4-MoE-Lite": row("Glm4MoeLiteConfig", **MLA, **GROUPED),
    "GLM-MoE-DSA": row("GlmMoeDsaConfig", **MLA, **GROUPED, **INDEXER),
    "dots1": row("Dots1Config", **ALTERNATING, **GROUPED),
    "ERNIE 4.5": row("Ernie4_5Config"),
    "ERNIE 4.5 MoE": row("Ernie4_5_MoeConfig", moe_num_shared_experts=1),
    "HunYuan": row("HunYuanDenseV1Config", tie_word_embeddings=True),
    "HunYuan MoE": row("HunYuanMoEV1Config"),
    "Hy3": row("HYV3Config", num_shared_experts=2, router_scaling_factor=1.5, **ONE_DENSE),
    "LFM2": row("Lfm2Config", block_auto_adjust_ff_dim=False, layer_types=["conv", FULL] * 2),
    "LFM2-MoE": row("Lfm2MoeConfig", num_dense_layers=1, layer_types=["conv", FULL] * 2),
    "LFM3": row("Lfm3Config", layer_types=["conv", SLIDING, "conv", FULL]),
    "Persimmon": row("PersimmonConfig", **PARTIAL_ROPE),
    "DiffLlama": row("DiffLlamaConfig"),
    "EXAONE 4": row("Exaone4Config", **ALTERNATING),
    "EXAONE MoE": row("ExaoneMoeConfig", **ALTERNATING, routed_scaling_factor=1.5, first_k_dense_replace=1),
    "HyperCLOVA X": row("HyperCLOVAXConfig", **GRANITE | {"logits_scaling": 2.0}),
    "Helium": row("HeliumConfig"),
    "JetMoE": row("JetMoeConfig"),
    "Doge": row("DogeConfig"),
    "BitNet": row("BitNetConfig", tie_word_embeddings=True),
    "Arcee": row("ArceeConfig"),
    "AFMoE (Trinity)": row("AfmoeConfig", **ALTERNATING, num_dense_layers=1, num_shared_experts=1, route_scale=1.5,
        mup_enabled=True),
    "Apertus": row("ApertusConfig"),
    "Seed-OSS": row("SeedOssConfig"),
    "Solar Open": row("SolarOpenConfig", n_shared_experts=2, n_group=2, topk_group=1, routed_scaling_factor=1.5),
    "CWM": row("CwmConfig", **ALTERNATING),
    "InternLM3": row("InternLM3Config", head_dim=16),
    "Jais 2": row("Jais2Config"),
    "Laguna": row("LagunaConfig", **ALTERNATING, shared_expert_intermediate_size=40, moe_routed_scaling_factor=1.5),
    "Mellum": row("MellumConfig", **ALTERNATING),
    "NanoChat": row("NanoChatConfig", final_logit_softcapping=3.0),
    "HRM-Text": row("HrmTextConfig", num_hidden_layers=2, L_cycles=2, embedding_scale=5.0),
    "Zaya": row("ZayaConfig", router_hidden_size=8, num_experts_per_tok=1),
    "DBRX": row("DbrxConfig", d_model=32, n_heads=4,
        attn_config={"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}),
    "Aria (text)": row("AriaTextConfig", moe_num_experts=4, moe_num_shared_experts=1),
    "XGLM": row("XGLMConfig", ffn_dim=48),
    "BioGPT": row("BioGptConfig"),
    "CTRL": row("CTRLConfig", dff=48),
    "XLM": row("XLMConfig", causal=True),
    "TrOCR (decoder)": row("TrOCRConfig", decoder_ffn_dim=48),
    "BERT (decoder)": row("BertConfig", is_decoder=True),
    "RoBERTa (decoder)": row("RobertaConfig", is_decoder=True),
    "XLM-RoBERTa (decoder)": row("XLMRobertaConfig", is_decoder=True),
    "ELECTRA (decoder)": row("ElectraConfig", is_decoder=True, embedding_size=16),
    "RemBERT (decoder)": row("RemBertConfig", is_decoder=True, input_embedding_size=16, output_embedding_size=24),
    "RoFormer (decoder)": row("RoFormerConfig", is_decoder=True),
    "BERT Generation": row("BertGenerationConfig", is_decoder=True),
    "ModernBERT (decoder)": row("ModernBertDecoderConfig", **ALTERNATING, local_attention=4),
}
ARCHITECTURES |= {
    "Llama 4": seeing("Llama4Config", "Llama 4 (text)",
        row("Llama4VisionConfig", **VISION, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32)),
    "Qwen3.5": seeing("Qwen3_5Config", "Qwen3.5 (text)", row("Qwen3_5VisionConfig", **QWEN3_VISION),
        tie_word_embeddings=True),
    "Qwen3.5-MoE": seeing("Qwen3_5MoeConfig", "Qwen3.5-MoE (text)", row("Qwen3_5MoeVisionConfig", **QWEN3_VISION)),
    "Gemma 3": seeing("Gemma3Config", "Gemma 3 (text)", SIGLIP, mm_tokens_per_image=4),
    "Gemma 4": seeing("Gemma4Config", "Gemma 4 (text)",
        row("Gemma4VisionConfig", **VISION, position_embedding_size=16)),
    "PaliGemma": seeing("PaliGemmaConfig", "Gemma", SIGLIP, projection_dim=32),
    "Qwen2-VL": seeing("Qwen2VLConfig", row("Qwen2VLTextConfig", **SECTIONS),
        row("Qwen2VLVisionConfig", depth=2, embed_dim=16, hidden_size=32, num_heads=2, patch_size=8),
        tie_word_embeddings=True),
    "Qwen2.5-VL": seeing("Qwen2_5_VLConfig", row("Qwen2_5_VLTextConfig", **SECTIONS),
        row("Qwen2_5_VLVisionConfig", **QWEN_VISION, fullatt_block_indexes=[1])),
    "Qwen3-VL": seeing("Qwen3VLConfig", row("Qwen3VLTextConfig", **SECTIONS),
        row("Qwen3VLVisionConfig", **QWEN3_VISION, deepstack_visual_indexes=[0]), tie_word_embeddings=True),
    "Qwen3-VL-MoE": seeing("Qwen3VLMoeConfig", row("Qwen3VLMoeTextConfig", **SECTIONS),
        row("Qwen3VLMoeVisionConfig", **QWEN3_VISION, deepstack_visual_indexes=[0])),
    "LLaVA": seeing("LlavaConfig", "Llama", CLIP),
    "LLaVA-NeXT": seeing("LlavaNextConfig", "Mistral", CLIP),
    "LLaVA-OneVision": seeing("LlavaOnevisionConfig", "Qwen2", SIGLIP, tie_word_embeddings=True),
    "Idefics 2": seeing("Idefics2Config", "Mistral", row("Idefics2VisionConfig", **VISION),
        perceiver_config=row("Idefics2PerceiverConfig", resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2,
            resampler_head_dim=8)),
    "Idefics 3": seeing("Idefics3Config", "Llama", row("Idefics3VisionConfig", **VISION)),
    "SmolVLM": seeing("SmolVLMConfig", "Llama", row("SmolVLMVisionConfig", **VISION)),
    "Mistral3": seeing("Mistral3Config", "Mistral", PIXTRAL, tie_word_embeddings=False),
    "InternVL": seeing("InternVLConfig", "Qwen3",
        row("InternVLVisionConfig", **VISION | {"image_size": [16, 16], "patch_size": [8, 8]}),
        tie_word_embeddings=True),
    "Aya Vision": seeing("AyaVisionConfig", "Cohere 2", SIGLIP),
    "Command A Vision": seeing("Cohere2VisionConfig", "Cohere 2", SIGLIP, alignment_intermediate_size=32),
    "Aria": seeing("AriaConfig", "Aria (text)", row("Idefics3VisionConfig", **VISION),
        projector_patch_to_query_dict={4: 4}),
    "Kimi K2.5": seeing("Kimi_K25Config", "DeepSeek-V3",
        row("Kimi_K25VisionConfig", **VISION, pos_emb_height=4, pos_emb_width=4), projection_hidden_size=16,
        tie_word_embeddings=False),
    "GLM-4V": seeing("Glm4vConfig", row("Glm4vTextConfig", **SECTIONS),
        row("Glm4vVisionConfig", **QWEN_VISION, image_size=16)),
    "GLM-OCR": seeing("GlmOcrConfig", row("GlmOcrTextConfig", **SECTIONS), row("GlmOcrVisionConfig", **QWEN_VISION)),
    "GLM-4V-MoE": seeing("Glm4vMoeConfig",
        row("Glm4vMoeTextConfig", **GROUPED, **rope(partial_rotary_factor=0.75, mrope_section=[1, 1, 1])),
        row("Glm4vMoeVisionConfig", **QWEN_VISION, image_size=16)),
    "LFM2-VL": seeing("Lfm2VlConfig", "LFM2",
        row("Siglip2VisionConfig", **VISION, num_patches=4, vision_use_head=False), projector_hidden_size=32),
    "Ovis 2": seeing("Ovis2Config", "Qwen2", row("Ovis2VisionConfig", **VISION, vocab_size=16),
        visual_indicator_token_ids=[92, 93, 94, 95, 96]),
    "EXAONE 4.5": seeing("Exaone4_5_Config", "EXAONE 4",
        row("Exaone4_5_VisionConfig", **QWEN_VISION, num_key_value_heads=2, fullatt_block_indexes=[1])),
    "HunYuan-VL": seeing("HunYuanVLConfig", row("HunYuanVLTextConfig", **rope(mrope_section=[1, 1, 1, 1])),
        row("HunYuanVLVisionConfig", **VISION, out_hidden_size=32, text_hidden_size=32, max_image_size=64,
            img_max_token_num=16)),
    "ERNIE 4.5 VL MoE": seeing("Ernie4_5_VLMoeConfig",
        row("Ernie4_5_VLMoeTextConfig", moe_intermediate_size=[24, 12], moe_num_experts=4, moe_k=2,
            moe_num_shared_experts=1, **rope(mrope_section=[1, 1, 2])),
        row("Ernie4_5_VLMoeVisionConfig", **QWEN_VISION)),
    "Granite Vision": seeing("LlavaNextConfig", "Granite", SIGLIP, tie_word_embeddings=True),
    "Llama 3.2 Vision": seeing("MllamaConfig", row("MllamaTextConfig", cross_attention_layers=[1]),
        row("MllamaVisionConfig", **VISION, attention_heads=2, num_global_layers=1, vision_output_dim=32,
            intermediate_layers_indices=[0])),
    "Fuyu": row("FuyuConfig", text_config=ARCHITECTURES["Persimmon"], image_size=16, patch_size=8),
}

ENCODER_DECODERS: dict[str, Row] = {
    "T5": row("T5Config", d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    "BART": row("BartConfig", encoder_layers=2, decoder_layers=2, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48),
}
# fmt: on

# What a recurrent layer starts from: redrawn, its state would explode or be forgotten at once.
_DYNAMICS = ("A_log", "D", "dt_bias", "time_decay", "time_first")


# Their forward asks for values of tensors, which a plan does not have: loops over the experts that were chosen, and lengths.
ASKS_FOR_VALUES = {"DBRX", "JetMoE", "LongCat-Flash", "XLM"}


def tiny_config(name: str) -> PreTrainedConfig:
    """The configuration of an architecture by its name in `ARCHITECTURES` or `ENCODER_DECODERS`."""
    return _build(*(ARCHITECTURES | ENCODER_DECODERS)[name])


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model in fp32 for evaluation, whose every weight shows in its logits: matrices, biases and norms are random."""
    return random_model(tiny_config(name), seed)


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """`tiny_model` of a configuration that was changed, of the class that loading would take."""
    auto = kind_of(config, config.model_type)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
        for path, parameter in model.named_parameters():
            if path.rsplit(".", 1)[-1] in _DYNAMICS:
                continue
            if parameter.ndim > 1 and "norm" not in path:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _build(config_class: str, arguments: dict[str, Any]) -> PreTrainedConfig:
    if not hasattr(transformers, config_class) and Version(transformers.__version__) < WRITTEN_FOR:
        pytest.skip(f"transformers {transformers.__version__} has no {config_class} yet")
    known = getattr(transformers, config_class)
    # Dataclasses in recent versions; in 5.0 what __init__ takes.
    names = set(known.__dataclass_fields__ if dataclasses.is_dataclass(known) else signature(known).parameters)
    fields = names | set(known.attribute_map)
    nested = {key: _build(*value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    return known(**{key: value for key, value in SIZES.items() if key in fields} | nested)
