"""How a checkpoint's tokens are drawn where a request says nothing of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mesh.errors import UnsupportedModel

MAX_TEMPERATURE = 2.0
"""The highest that a request may name."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """``temperature`` from 0 (the likeliest token each time) to :data:`MAX_TEMPERATURE`; the others
    leave out no token as they are here. ``top_k`` 0: all."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """What a checkpoint recommends. One with ``do_sample`` false recommends nothing of the
        kind: its other settings are then left overs, which transformers ignores, too.

        Args:
            settings: As :func:`mesh.model.generation_config.effective_settings` gives them.

        Raises:
            UnsupportedModel: a value that nothing can be drawn by; the error names the setting.
        """
        neutral = cls()
        if settings.get("do_sample") is False:
            return neutral
        return cls(
            temperature=_number(settings, "temperature", neutral.temperature, 0.0, MAX_TEMPERATURE),
            top_p=_number(settings, "top_p", neutral.top_p, math.ulp(0.0), 1.0),
            top_k=_count(settings, "top_k", neutral.top_k),
            min_p=_number(settings, "min_p", neutral.min_p, 0.0, 1.0),
        )


def _number(
    settings: Mapping[str, Any], name: str, default: float, lowest: float, highest: float
) -> float:
    found = settings.get(name)
    if found is None:
        return default
    if (
        isinstance(found, bool)
        or not isinstance(found, int | float)
        or not lowest <= found <= highest
    ):
        above = "above 0" if lowest > 0 else f"from {lowest:g}"
        raise _refused(name, found, f"a number {above} to {highest:g}")
    return float(found)


def _count(settings: Mapping[str, Any], name: str, default: int) -> int:
    found = settings.get(name)
    if found is None:
        return default
    if type(found) is not int or found < 0:
        raise _refused(name, found, "a number of tokens, or 0 for all")
    return found


def _refused(name: str, value: object, described: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The checkpoint's generation settings have {name} = {repr(value)[:60]}. It has to be "
        f"{described}."
    )
