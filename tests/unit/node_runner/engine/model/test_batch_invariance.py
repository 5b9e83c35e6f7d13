"""In 16 bits a row's logits are the same bits, whatever rows are computed with it."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from node_runner.engine.device import batch_invariant
from node_runner.engine.device.batch_invariant import ROW_COUNTS, InvariantProducts, linear
from tests.conftest import DEMO_MODEL
from tests.support.engine.batch_mates import check_batch_invariance
from tests.support.engine.families import TINY, VARIANTS, family_of
from tests.support.engine.pipeline import load_span
from tests.support.some_slow import some_slow

DTYPES = pytest.mark.parametrize(
    "dtype", some_slow([torch.bfloat16, torch.float16], quick=[torch.bfloat16]), ids=str
)

QUICK = {"llama biased", "gemma2", "gpt_oss", "falcon alibi"}
SLOW = {"mixtral", "gpt2", "deepseek_v3", "bloom"}
"""With the quick ones, one of each way to score, to route to experts and to activate."""


def _marks(name: str) -> list[pytest.MarkDecorator]:
    if name in QUICK:
        return []
    return [pytest.mark.slow if name in SLOW else pytest.mark.long]


FAMILIES = [pytest.param(name, marks=_marks(name)) for name in VARIANTS]


@DTYPES
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_do_not_depend_on_the_batch(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = TINY | VARIANTS[name] | {"model_type": family_of(name)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text((DEMO_MODEL / "tokenizer.json").read_text())
    span = load_span(tmp_path / "model", (0, 4), tmp_path / "spans", dtype=dtype)
    assert span.batch_invariant
    check_batch_invariance(span, TINY["vocab_size"])


@pytest.mark.long
@DTYPES
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_nor_do_those_of_quantized_layers(
    quantization: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    span = load_span(DEMO_MODEL, (0, 6), tmp_path, quantization=quantization, dtype=dtype)
    check_batch_invariance(span, 2048)


def test_float32_and_those_who_do_not_want_it_have_fast_products(tmp_path: Path) -> None:
    assert not load_span(DEMO_MODEL, (0, 1), tmp_path).batch_invariant
    half = load_span(DEMO_MODEL, (0, 1), tmp_path, dtype=torch.float16, batch_invariant=False)
    assert not half.batch_invariant
    assert not half.kv_shape.batch_invariant


def uneven(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of very different sizes, whose sums depend on the order."""
    random = torch.Generator().manual_seed(rows)
    numbers = torch.randn(rows, width, generator=random)
    return (numbers * 2.0 ** torch.randint(-6, 7, numbers.shape, generator=random)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("depth", [64, 513])
def test_a_row_of_a_product_does_not_depend_on_the_others(
    depth: int, transposed: bool, dtype: torch.dtype
) -> None:
    rows = uneven(200, depth, dtype)
    weight = uneven(depth, 96, dtype).t() if transposed else uneven(96, depth, dtype)
    bias = uneven(1, 96, dtype)[0]
    alone = torch.cat([linear(row, weight, bias) for row in rows.split(1)])
    torch.testing.assert_close(
        alone.float(),
        functional.linear(rows.float(), weight.float(), bias.float()),
        rtol=0.02,
        atol=2,
    )
    for count in (2, 3, 7, 16, 31, 64, 128, 200):
        assert torch.equal(torch.cat([linear(p, weight, bias) for p in rows.split(count)]), alone)


def test_a_count_whose_kernel_adds_up_in_another_order_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = functional.linear

    def other_order_for_many(
        rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if len(rows) in (1, 64):
            return right(rows.flip(1), weight.flip(1), bias)
        return (
            right(rows[:8], weight, bias)
            if len(rows) <= 8
            else torch.cat([right(part, weight, bias) for part in rows.split(8)])
        )

    monkeypatch.setattr(batch_invariant.functional, "linear", other_order_for_many)
    counts = batch_invariant._row_counts(torch.zeros(48, 80), biased=False)
    assert {1, 64}.isdisjoint(counts)
    assert {8, 16, 32, 128} <= set(counts) <= set(ROW_COUNTS)


@DTYPES
def test_functions_of_a_number_do_not_depend_on_its_place(dtype: torch.dtype) -> None:
    """All numbers of 16 bits: in whole vectors, and in what is too short for one."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    with InvariantProducts():
        for function in (
            functional.gelu,
            lambda x: functional.gelu(x, approximate="tanh"),
            functional.silu,
            torch.sigmoid,
            torch.tanh,
        ):
            whole = function(numbers)
            parts = torch.cat([function(part) for part in numbers.split(7)])
            assert torch.equal(whole.nan_to_num(), parts.nan_to_num())
            assert torch.equal(whole.isnan(), parts.isnan())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_that_of_torch(approximate: str) -> None:
    numbers = torch.linspace(-9, 9, 1001)
    with InvariantProducts():
        own = functional.gelu(numbers, approximate=approximate)
    torch.testing.assert_close(own, functional.gelu(numbers, approximate=approximate))
