"""Small random models of every served family, and their logits."""

import torch

from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_model import SpanModel

TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"] * 2
SHORT, LONG = {"sliding_window": 9}, {"sliding_window": 500}
USED = {"use_sliding_window": True}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 128,
}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
}

VARIANTS: dict[str, dict[str, object]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biased": {"attention_bias": True, "mlp_bias": True},
    "llama rope scaled": {"rope_scaling": LLAMA3_ROPE},
    "mistral": {"sliding_window": None},
    "mistral short window": SHORT,
    "mistral long window": LONG,
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 window from layer 2": USED | SHORT | {"max_window_layers": 2},
    "qwen3": {"head_dim": 16},
    "qwen3 window": USED | SHORT | {"head_dim": 24, "max_window_layers": 1},
    "mixtral": {"num_local_experts": 4},
    "mixtral window": {"num_local_experts": 4} | SHORT,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 48},
    "qwen2_moe window and dense layers": EXPERTS
    | {"shared_expert_intermediate_size": 48, "mlp_only_layers": [2], "decoder_sparse_step": 1}
    | USED
    | SHORT,
    "qwen3_moe": EXPERTS | {"head_dim": 16},
    "qwen3_moe every other layer": EXPERTS | {"head_dim": 16, "decoder_sparse_step": 2},
    "qwen3_moe window": EXPERTS | {"head_dim": 16, "mlp_only_layers": [0]} | USED | SHORT,
    "gemma": {"head_dim": 16},
    "gemma untied": {"head_dim": 16, "tie_word_embeddings": False},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0} | SHORT,
    "gemma2 long window": {"head_dim": 16, "final_logit_softcapping": 3.0} | LONG,
    "gemma2 uncapped": {
        "head_dim": 16,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    | SHORT,
    "gemma3_text": {"head_dim": 16, "layer_types": LOCAL_AND_GLOBAL}
    | SHORT
    | {"rope_parameters": GEMMA3_ROPE},
    "gemma3_text global last": {"head_dim": 16, "sliding_window_pattern": 4}
    | SHORT
    | {"rope_theta": 50000.0, "rope_local_base_freq": 500.0, "final_logit_softcapping": 3.0},
    "gemma3_text long window": {"head_dim": 16, "sliding_window_pattern": 3} | LONG,
    "phi": {"partial_rotary_factor": 0.5},
    "phi with norms": {"partial_rotary_factor": 0.25, "qk_layernorm": True},
    "phi3": {"sliding_window": None},
    "phi3 window": SHORT | {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "olmoe clipped": {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5},
    "granite": {
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
    },
    "granite tied": {"embedding_multiplier": 3.0, "tie_word_embeddings": True},
    "stablelm": {"use_qkv_bias": True},
    "stablelm with norms": {"qk_layernorm": True, "use_parallel_residual": True},
    "glm4": {"head_dim": 16, "attention_bias": True},
    "starcoder2": {"sliding_window": None},
    "starcoder2 window": SHORT,
    "gpt_neox": {},
    "gpt_neox serial": {"use_parallel_residual": False, "rotary_pct": 1.0, "attention_bias": False},
    "gpt2": {},
    "gpt2 untied": {"tie_word_embeddings": False},
    "smollm3": {"no_rope_layers": [1, 0, 0, 1]},
    "smollm3 by interval": {"no_rope_layer_interval": 3},
    "smollm3 window": USED | SHORT | {"no_rope_layers": [1, 0, 1, 0]},
    "exaone4": SHORT | {"sliding_window_pattern": 2},
    "exaone4 long window": LONG | {"sliding_window_pattern": 4},
    "exaone4 global": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "ernie4_5": {"head_dim": 16},
    "ernie4_5 tied": {"head_dim": 16, "tie_word_embeddings": True, "use_bias": True},
    "cohere": {"logit_scale": 0.3},
    "cohere with norms": {"use_qk_norm": True, "tie_word_embeddings": False},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2} | SHORT,
    "gpt_oss long window": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    | LONG,
    "deepseek_v3": LATENT,
    "deepseek_v3 whole queries": LATENT | {"q_lora_rank": None, "first_k_dense_replace": 0},
    "deepseek_v3 yarn": LATENT | {"rope_parameters": YARN_ROPE},
    "bloom": {},
    "bloom untied, of twelve heads": {"num_attention_heads": 12, "hidden_size": 48}
    | {"tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True},
    "falcon of one kv head": {"multi_query": True, "alibi": False},
    "falcon of many kv heads": {"multi_query": False, "alibi": False, "bias": True},
    "falcon serial": {"multi_query": False, "alibi": False, "parallel_attn": False},
    "falcon new": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "falcon new, one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}
    | {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    "falcon alibi": {"multi_query": False, "alibi": True, "parallel_attn": False},
    "falcon alibi of twelve heads": {"num_attention_heads": 12, "hidden_size": 48}
    | {"multi_query": True, "alibi": True},
}


def family_of(variant: str) -> str:
    return variant.split(maxsplit=1)[0]


CHUNK = 32
DECODED = 4
"""Rows that each text ends with, fed one at a time."""


def batches_of(texts: list[list[int]]) -> list[list[tuple[int, int, int]]]:
    """Batches of (text, begin, end): prompts in chunks, then one row of each text."""
    prompts = [len(text) - DECODED for text in texts]
    batches = [
        [
            (number, begin, min(begin + CHUNK, prompt))
            for number, prompt in enumerate(prompts)
            if begin < prompt
        ]
        for begin in range(0, max(prompts), CHUNK)
    ]
    return batches + [
        [(number, prompt + row, prompt + row + 1) for number, prompt in enumerate(prompts)]
        for row in range(DECODED)
    ]


def logits_of(spans: list[SpanModel], texts: list[list[int]]) -> list[torch.Tensor]:
    """Of each text's every position."""
    pools = [KVBlockPool(span.kv_shape, 20 * span.kv_shape.bytes_per_block) for span in spans]
    caches = [[pool.reserve(len(text)) for text in texts] for pool in pools]
    logits: list[list[torch.Tensor]] = [[] for _ in texts]
    for batch in batches_of(texts):
        hidden = spans[0].embed(
            [token for number, begin, end in batch for token in texts[number][begin:end]],
            [position for _, begin, end in batch for position in range(begin, end)],
        )
        for span, own in zip(spans, caches, strict=True):
            segments = [Segment(own[number], end - begin, begin) for number, begin, end in batch]
            hidden = span.forward(hidden, RaggedBatch(segments))
        parts = spans[0].logits(hidden).split([segment.rows for segment in segments])
        for (number, _, _), part in zip(batch, parts, strict=True):
            logits[number].append(part)
    return [torch.cat(parts) for parts in logits]
