"""One thread for the computing: the models are tiny, and cores are shared with other tests."""

from collections.abc import Iterator

import pytest
import structlog
import torch
from torch.nn.attention import flex_attention

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that a test runs sets its log up on a stream that is closed after the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention written out, as it is meant for looking into masks and scores."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
