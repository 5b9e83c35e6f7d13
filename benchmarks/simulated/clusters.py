"""Clusters of unlike devices, drawn at random from figures that were measured."""

from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

from benchmarks.footprint import DEVICES, GB, MODELS, working_bytes
from market.placement.solver import Candidate, ModelShape, candidate, measured_speed
from mesh.model.config import normalize
from mesh.model.memory_footprint import QUANTIZATIONS, footprint, linear_shapes

MODEL = "Llama-2-7B"
LARGE_MODEL = "Llama-2-70B"

STEP_MS, STEP_LAYERS, STEP_EDGE_WORK = 1000 / 3.9, 22, 1.49
"""A token of model L with plain transformers on one core, docs/reports/speed.md: 22 layers of 44M
weights and a head of 65.5M, which is 1.49 of them."""

FASTEST = 16
"""How many times as quick the quickest device is as the slowest; others are drawn in between,
evenly by the logarithm, and independently of their memory."""

SESSIONS, TOKENS = 8, 2048
"""A node's KV capacity: generations, and positions of each."""

CONTEXT_BYTES = round(0.8 * GB)
LOAD_SPEED = 125e6
"""Bytes a second: a gigabit."""


def model_shape(name: str) -> ModelShape:
    config = MODELS[name]
    weights = sum(outputs * inputs for outputs, inputs in linear_shapes(normalize(config)))
    head: int = config["vocab_size"] * config["hidden_size"]
    return ModelShape(config["num_hidden_layers"], head / weights)


class Device(NamedTuple):
    """A node, and its memory by the maker's figure."""

    node: Candidate
    vram_gb: int


def draw(rng: Random, count: int, name: str, *, trusted: float) -> list[Device]:
    """``count`` nodes, each with memory, quantization and speed of its own; trusted by chance, but
    one of them always."""
    config = MODELS[name]
    sure = rng.randrange(count)
    return [
        _device(rng, f"node {number:04}", config, number == sure or rng.random() < trusted)
        for number in range(count)
    ]


def _device(rng: Random, node_id: str, config: Mapping[str, Any], trusted: bool) -> Device:
    vram_gb, quantization = rng.choice(DEVICES), rng.choice(QUANTIZATIONS)
    base = measured_speed(STEP_LAYERS, STEP_MS, edge_work=STEP_EDGE_WORK)
    node = candidate(
        node_id,
        footprint(config, quantization),
        memory_bytes=vram_gb * GB - CONTEXT_BYTES - working_bytes(config, quantization),
        positions=SESSIONS * TOKENS,
        speed=base * FASTEST ** rng.random(),
        load_speed=LOAD_SPEED,
        trusted=trusted,
    )
    return Device(node, vram_gb)
