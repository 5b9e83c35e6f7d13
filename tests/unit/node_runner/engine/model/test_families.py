"""Every served family gives transformers' own logits, however it is cut and batched."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config, PreTrainedModel

from mesh.errors import UnsupportedModel
from node_runner.engine.model.families import FAMILIES
from node_runner.engine.model.span_checkpoint import prepare_span
from tests.conftest import DEMO_MODEL
from tests.support.engine.families import DECODED, TINY, VARIANTS, family_of, logits_of
from tests.support.engine.pipeline import load_span
from tests.support.some_slow import some_slow

SCORES_OF_ALL_KINDS = [
    "llama",
    "mistral short window",
    "gemma2",
    "gpt_oss",
    "deepseek_v3",
    "bloom",
    "falcon of one kv head",
    "falcon alibi",
]

ONE_OF_EACH_FAMILY = {family_of(name): name for name in reversed(VARIANTS)}.values()

FUSED = [name for name in VARIANTS if family_of(name) in ("llama", "mistral", "qwen2", "qwen3")]


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Ragged: shorter than a window, longer than it, and longer than two chunks."""
    torch.manual_seed(1)
    lengths = (1, 7, 70)
    return [torch.randint(300, (length + DECODED,)).tolist() for length in lengths]


def make(name: str, folder: Path) -> PreTrainedModel:
    """A random model, on disk too. No tensor is left as plain as new norms and biases are."""
    settings = TINY | VARIANTS[name] | {"model_type": family_of(name)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).eval()
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor), alpha=0.1)
    model.save_pretrained(folder)
    # As the hub has it: what transformers computes from it is not written out.
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text((DEMO_MODEL / "tokenizer.json").read_text())
    return model


def compare(
    model: PreTrainedModel,
    folder: Path,
    texts: list[list[int]],
    cuts: list[int],
    *,
    paged: bool = False,
) -> None:
    spans = [load_span(folder / "model", cut, folder / "cache") for cut in pairwise(cuts)]
    for span in spans:
        span.kv_shape = replace(span.kv_shape, paged=paged)
    for ours, text in zip(logits_of(spans, texts), texts, strict=True):
        theirs = model(torch.tensor([text])).logits[0]
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def check(name: str, folder: Path, texts: list[list[int]]) -> None:
    model = make(name, folder / "model")
    for cuts in ([0, 2, 4], [0, 1, 3, 4]):
        compare(model, folder, texts, cuts)


@pytest.mark.parametrize("name", some_slow(VARIANTS, quick=ONE_OF_EACH_FAMILY))
def test_logits_equal_transformers(name: str, tmp_path: Path, texts: list[list[int]]) -> None:
    check(name, tmp_path, texts)


@pytest.mark.parametrize("name", some_slow(FUSED, quick=FUSED[:1]))
def test_logits_of_fused_families_equal_transformers_without_fusing_too(
    name: str, tmp_path: Path, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_runner.engine.model.span_model.can_fuse", lambda decoder: False)
    check(name, tmp_path, texts)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", SCORES_OF_ALL_KINDS)
@torch.inference_mode()
def test_logits_equal_transformers_with_paged_attention_too(
    name: str, tmp_path: Path, texts: list[list[int]]
) -> None:
    compare(make(name, tmp_path / "model"), tmp_path, texts, [0, 2, 4], paged=True)


def test_every_family_is_tested() -> None:
    assert {family_of(name) for name in VARIANTS} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "prefix", "buffers"),
    [
        ("gpt2", "transformer.", ["h.{}.attn.bias"]),
        ("bloom", "transformer.", []),
        (
            "gpt_neox",
            "",
            [
                "gpt_neox.layers.{}.attention.bias",
                "gpt_neox.layers.{}.attention.masked_bias",
                "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
            ],
        ),
    ],
)
@torch.inference_mode()
def test_checkpoints_of_old_are_served(
    name: str, prefix: str, buffers: list[str], tmp_path: Path, texts: list[list[int]]
) -> None:
    """On the hub some tensors lack the model's name, and some are only buffers."""
    model = make(name, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = {key.removeprefix(prefix): tensor for key, tensor in load_file(file).items()}
    for layer in range(TINY["num_hidden_layers"]):
        tensors |= {buffer.format(layer): torch.ones(8) for buffer in buffers}
    save_file(tensors, file, metadata={"format": "pt"})
    compare(model, tmp_path, texts, [0, 2, 4])


@torch.inference_mode()
def test_gpt_oss_is_served_as_it_is_published(tmp_path: Path, texts: list[list[int]]) -> None:
    """Its experts in MXFP4."""
    make("gpt_oss", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*blocks, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 126, blocks, dtype=torch.uint8)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
    )
    compare(model.eval(), tmp_path, texts, [0, 2, 4])


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("opt", {}, r"family 'opt' yet; it serves bloom, .*, starcoder2"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("olmoe", {"sliding_window": 9}, "sliding_window"),
        ("mistral", {"layer_types": ["full_attention"] * 4, "sliding_window": 9}, "layer_types"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ("llama", {"num_beams": 2}, "num_beams"),
        (
            "phi3",
            {
                "original_max_position_embeddings": 64,
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                },
            },
            "'longrope'",
        ),
    ],
)
def test_what_is_not_tested_is_refused_by_name(
    tmp_path: Path, name: str, settings: dict[str, object], reason: str
) -> None:
    config = TINY | settings | {"model_type": name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=reason):
        prepare_span(str(tmp_path), layers=None, edge=True, cache=tmp_path / "cache")
