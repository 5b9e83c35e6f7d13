"""What a device could serve of each model on offer, and what that would earn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import torch

from mesh.errors import MeshError
from mesh.model.compute_cost import edge_units
from mesh.model.config import normalize
from mesh.model.memory_footprint import footprint
from node_runner.diagnostics import speed_test
from node_runner.machine import devices
from node_runner.platform_client.http import request

HOUR = 3600
"""Seconds."""

MODELS_PATH = "/api/inference/models"

POSITIONS = 8 * 2048
"""Positions of each layer's KV cache: eight generations of 2,048."""


@dataclass(frozen=True, slots=True)
class EarningsEstimate:
    """A model, and this device's part in it.

    ``fits``: layers at each quantization that the engine has for it. ``per_hour``: FAR, none where
    the speed is not known.
    """

    model_id: str
    layers: int
    fits: Mapping[str, int]
    price: Decimal
    decode: float | None
    per_hour: Decimal | None


def estimates(
    http: httpx.Client, device: torch.device, dtype: torch.dtype, *, seconds: float
) -> Iterator[EarningsEstimate]:
    """Estimates for each model of the platform.

    ``seconds``: in which the speed at each model is measured; 0 for not at all.

    Raises:
        PlatformError: the platform does not tell.
    """
    memory = devices.available_memory(device)
    for model in request(http, "GET", MODELS_PATH, required=["models"])["models"]:
        config = request(http, "GET", f"/api/discovery/config/{model['id']}")
        price = Decimal(model["price_per_token_far_exact"])
        decode = _decode(config, device, dtype, seconds) if seconds else None
        yield EarningsEstimate(
            model_id=model["id"],
            layers=model["layers"],
            fits=layers_that_fit(config, memory),
            price=price,
            decode=decode,
            per_hour=None if decode is None else per_hour(config, price, decode),
        )


def _decode(
    config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, seconds: float
) -> float | None:
    """Layers a second of one generation; none where the engine does not serve the family, or not
    even one layer fits."""
    try:
        with speed_test.random_checkpoint(config, 1) as folder:
            speed = speed_test.measure(
                str(folder),
                layers=1,
                device=device,
                dtype=dtype,
                quantization="none",
                seconds=seconds,
            )
    except (MeshError, torch.OutOfMemoryError):
        return None
    return speed.decode


def layers_that_fit(config: Mapping[str, Any], memory: int) -> dict[str, int]:
    """Layers within ``memory`` bytes, by quantization; at most all."""
    layers: int = normalize(config)["num_hidden_layers"]
    found = {}
    for quantization in ("none", "int8", "nf4"):
        try:
            sizes = footprint(config, quantization)
        except MeshError:
            continue
        found[quantization] = min(layers, sizes.layers_within(memory, positions=POSITIONS))
    return found


def per_hour(config: Mapping[str, Any], price: Decimal, layers_per_second: float) -> Decimal:
    """FAR an hour before the platform's fee, if the device computes all the time at this speed.

    A token is paid by layers, so it does not matter how many of them the device holds.
    """
    settings = normalize(config)
    shares = Decimal(settings["num_hidden_layers"]) + Decimal(edge_units(settings)) / 1000
    return price * Decimal(layers_per_second) * HOUR / shares
