"""One thread for the computing: the models are tiny, and cores are shared with other tests."""

import pytest
import torch
from torch.nn.attention import flex_attention

torch.set_num_threads(1)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention written out, as it is meant for looking into masks and scores."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
