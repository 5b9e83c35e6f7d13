"""A node tries whether a span is batch-invariant, and says what it found."""

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from node_runner.engine.model.batch_invariance_trial import holds_batch_invariance
from node_runner.node.engine_loader import EngineLoader
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import load_span
from tests.support.node.options import node_options


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layers", [(0, 2), (4, 6)], ids=["edge", "last"])
def test_it_holds(layers: tuple[int, int], dtype: torch.dtype, tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert holds_batch_invariance(load_span(DEMO_MODEL, layers, tmp_path, dtype=dtype))
    assert logs[-1]["event"] == "batch_invariance_holds"


def test_it_fails_where_a_row_depends_on_those_beside_it(tmp_path: Path) -> None:
    span = load_span(DEMO_MODEL, (0, 2), tmp_path, dtype=torch.bfloat16)
    right = span._layers

    def leaking(hidden: torch.Tensor, batch: object) -> torch.Tensor:
        output: torch.Tensor = right(hidden, batch)  # type: ignore[arg-type]
        return output * (1 + len(hidden) / 64)

    span._layers = leaking
    with capture_logs() as logs:
        assert not holds_batch_invariance(span)
    assert logs[-1]["event"] == "batch_invariance_fails"


@pytest.mark.parametrize(
    ("dtype", "wanted", "events"),
    [
        ("bfloat16", True, ["batch_invariance_holds"]),
        ("bfloat16", False, ["batch_invariance_off"]),
        ("float32", True, []),
    ],
)
def test_a_node_says_at_its_start_whether_it_holds(
    dtype: str, wanted: bool, events: list[str], tmp_path: Path
) -> None:
    options = node_options(tmp_path, dtype=dtype, batch_invariant=wanted)
    loader = EngineLoader(options, torch.device("cpu"), "http://127.0.0.1:1")
    with capture_logs() as logs:
        loader.load(loader.prepare((0, 2), edge=True))
    names = [entry["event"] for entry in logs]
    assert [name for name in names if name.startswith("batch_invariance")] == events
