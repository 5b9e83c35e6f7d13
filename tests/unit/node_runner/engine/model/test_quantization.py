"""Spans in 8 and 4 bits: nearly the same numbers, whatever else is in the batch, in less memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from eth_account import Account
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from mesh.errors import UnsupportedModel
from mesh.model.memory_footprint import WHOLE
from node_runner.cli import app
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.families import FAMILIES
from node_runner.engine.model.span_model import SpanModel
from node_runner.service.exit_codes import CONFIG_ERROR
from tests.conftest import DEMO_MODEL
from tests.support.engine.families import TINY, VARIANTS, logits_of
from tests.support.engine.pipeline import Pipeline, load_span
from tests.support.engine.prompts import encoded
from tests.support.some_slow import some_slow

QUICK = ("bloom", "gpt2", "llama", "mixtral")
"""Families, of which the others are among the slow tests."""

CUTS = [0, 2, 4, 6]
PROMPTS = ["The for statement", "If the object", "When an exception", "Return the " * 20]
NEW_TOKENS = 16

ERROR = {"int8": 0.05, "nf4": 0.5}
"""How far a model of random weights may be off, as a part of its logits: more than twice what any
is."""

HALVES = {"int8": 0.55, "nf4": 0.35}
"""Of what the layers take in 16 bits: quantized weights, with their scales."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return encoded(PROMPTS)


@pytest.fixture(scope="module")
def whole() -> PreTrainedModel:
    """The demo model as transformers has it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    return model


def forward(span: SpanModel, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Texts ``[length, hidden]`` from their beginning, all in one batch."""
    pool = KVBlockPool(span.kv_shape, len(rows) * 4 * span.kv_shape.bytes_per_block)
    segments = [Segment(pool.reserve(len(own)), len(own), 0) for own in rows]
    return list(
        span.forward(torch.cat(rows), RaggedBatch(segments)).split([len(own) for own in rows])
    )


@pytest.mark.parametrize(
    ("family", "quantization"),
    [
        pytest.param(family, quantization, marks=() if family in QUICK else pytest.mark.slow)
        for quantization, families in (("int8", sorted(FAMILIES)), ("nf4", QUICK))
        for family in families
    ],
)
@torch.inference_mode()
def test_every_family_is_quantized_or_refused(
    family: str, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused exactly if matrices of its layers would stay as they are."""
    source, cache = tmp_path / "model", tmp_path / "cache"
    model = make(family, source)
    if family in WHOLE:
        with pytest.raises(UnsupportedModel, match=f"'{family}' cannot be quantized"):
            load_span(source, (2, 4), cache, quantization=quantization)
        monkeypatch.setattr(
            "node_runner.engine.model.span_model.check_quantization", lambda *_: None
        )
        assert matrices(load_span(source, (2, 4), cache, quantization=quantization))
        return
    spans = [load_span(source, cut, cache, quantization=quantization) for cut in ((0, 2), (2, 4))]
    assert not matrices(spans[1])
    text = torch.randint(300, (70,)).tolist()
    expected = model(torch.tensor([text])).logits[0]
    [logits] = logits_of(spans, [text])
    assert 0 < (logits - expected).norm() / expected.norm() < ERROR[quantization]


def make(family: str, folder: Path) -> PreTrainedModel:
    """A random model whose products divide into nf4's blocks, on disk too."""
    variant = next(name for name in VARIANTS if name.split(maxsplit=1)[0] == family)
    settings = TINY | VARIANTS[variant] | {"model_type": family, "intermediate_size": 128}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.eval().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings))
    shutil.copy(DEMO_MODEL / "tokenizer.json", folder)
    return model


def matrices(span: SpanModel) -> list[torch.Size]:
    """Of a span without the edge: what has two dimensions or more, and is not quantized."""
    return [
        weight.shape for weight in span.weights if weight.dim() > 1 and weight.is_floating_point()
    ]


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_rest_of_its_batch(cache: Path, quantization: str) -> None:
    """Also if its neighbours are a thousand times as large."""
    span = load_span(DEMO_MODEL, (2, 4), cache, quantization=quantization)
    torch.manual_seed(0)
    text = torch.randn(9, span.hidden_size)
    neighbours = [1000 * torch.randn(rows, span.hidden_size) for rows in (1, 30)]
    [alone] = forward(span, [text])
    _, batched, _ = forward(span, [neighbours[0], text, neighbours[1]])
    torch.testing.assert_close(batched, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "quantizations",
    some_slow(
        [["int8"] * 3, ["nf4", "int8", "nf4"], ["none", "int8", "nf4"]],
        quick=[["none", "int8", "nf4"]],
    ),
    ids=" ".join,
)
def test_text_through_quantized_spans(
    cache: Path, prompts: list[list[int]], whole: PreTrainedModel, quantizations: list[str]
) -> None:
    """Each prompt's tokens are the same alone and with all others, and the model that was not
    quantized finds them likely: its own cost it 1.0 nat each, and
    random ones above 10."""
    together = Pipeline.cut(DEMO_MODEL, CUTS, cache, quantizations=quantizations)
    for number, prompt in enumerate(prompts):
        together.open(str(number), prompt, max_tokens=NEW_TOKENS)
    together.run()
    assert max(together.batches) > 1
    assert not together.refused
    alone = Pipeline.cut(DEMO_MODEL, CUTS, cache, quantizations=quantizations)
    for number, prompt in enumerate(prompts):
        alone.open(str(number), prompt, max_tokens=NEW_TOKENS)
        alone.run()
        assert alone.tokens(str(number)) == together.tokens(str(number))
    costs = [
        surprise(whole, prompt, together.tokens(str(number)))
        for number, prompt in enumerate(prompts)
    ]
    assert torch.cat(costs).mean() < 1.5


@torch.inference_mode()
def surprise(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Nats of each token, to a model."""
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="none")


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_weights_take_less_memory(cache: Path, quantization: str) -> None:
    whole = load_span(DEMO_MODEL, (2, 4), cache)
    span = load_span(DEMO_MODEL, (2, 4), cache, quantization=quantization)
    sizes = [sum(weight.nbytes for weight in each.weights) for each in (span, whole)]
    assert sizes[0] < HALVES[quantization] * sizes[1] / 2


def test_products_that_do_not_divide_into_blocks_are_refused(tmp_path: Path) -> None:
    settings = TINY | {"model_type": "llama"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="blocks of 64: a product of width 96"):
        load_span(tmp_path, (1, 2), tmp_path / "cache", quantization="nf4")
    assert load_span(tmp_path, (1, 2), tmp_path / "cache", quantization="int8").weights


def test_an_unknown_quantization_is_refused(cache: Path) -> None:
    with pytest.raises(UnsupportedModel, match="one of none, int8, nf4; got 'int3'"):
        load_span(DEMO_MODEL, (2, 4), cache, quantization="int3")


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("nf4", 4)])
def test_a_missing_library_is_named(
    cache: Path, quantization: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = f"transformers.quantizers.quantizer_bnb_{bits}bit"
    monkeypatch.setattr(f"{quantizer}.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UnsupportedModel, match="needs bitsandbytes"):
        load_span(DEMO_MODEL, (2, 4), cache, quantization=quantization)
    assert load_span(DEMO_MODEL, (2, 4), cache).weights


def test_the_command_line_refuses_what_is_no_quantization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account.create()
    keyfile = tmp_path / "wallet.json"
    keyfile.write_text(json.dumps(account.encrypt("", kdf="pbkdf2", iterations=1)))
    monkeypatch.setenv("FAR_NODE_PASSWORD", "")
    arguments = ["start", "--model", "m", "--wallet", account.address, "--keyfile", str(keyfile)]
    result = CliRunner().invoke(
        app, [*arguments, "--discovery", "http://127.0.0.1:9", "--quantization", "int3"]
    )
    assert result.exit_code == CONFIG_ERROR
    assert "--quantization is one of none, int8, nf4; got 'int3'" in " ".join(result.stderr.split())
