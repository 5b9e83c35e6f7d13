"""What a checkpoint recommends for drawing its tokens."""

from typing import Any

import pytest

from market.catalog.sampling_defaults import SamplingDefaults
from mesh.errors import UnsupportedModel


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SamplingDefaults()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
            SamplingDefaults(temperature=0.6, top_p=0.9),
        ),
        (
            {"temperature": 1, "top_k": 20, "min_p": 0.05},
            SamplingDefaults(top_k=20, min_p=0.05),
        ),
        ({"temperature": 0}, SamplingDefaults(temperature=0.0)),
        ({"temperature": None, "top_k": None, "do_sample": None}, SamplingDefaults()),
        ({"do_sample": False, "temperature": 0.6, "top_k": -1}, SamplingDefaults()),
    ],
)
def test_what_a_checkpoint_says_is_the_default(
    settings: dict[str, Any], expected: SamplingDefaults
) -> None:
    assert SamplingDefaults.of(settings) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", [1]),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", "all"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("min_p", -0.5),
        ("min_p", 1.01),
    ],
)
def test_a_value_that_nothing_can_be_drawn_by_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        SamplingDefaults.of({name: value})
