"""A span of a large checkpoint: only its own files are read, and little more than it is ever in
memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.checkpoints.watched_load import Loader
from benchmarks.loading import make_checkpoint
from mesh.model.memory_footprint import QUANTIZATIONS
from tests.support.some_slow import some_slow

SHARDS, LAYERS_EACH, HIDDEN = 8, 4, 512
SPAN = (8, 16)
OWN_SHARDS = slice(2, 4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of a checkpoint; those that the span does not need are empty, so that to open one fails."""
    folder = tmp_path_factory.mktemp("large") / "model"
    made = make_checkpoint(folder, hidden=HIDDEN, shards=SHARDS, layers_each=LAYERS_EACH)
    for shard in made:
        if shard not in made[OWN_SHARDS]:
            shard.write_bytes(b"")
    return made


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    with Loader() as started:
        yield started


@pytest.mark.parametrize("quantization", some_slow(QUANTIZATIONS, quick=["none"]))
def test_the_peak_is_the_span_and_less_than_one_shard(
    loader: Loader, shards: list[Path], quantization: str, tmp_path: Path
) -> None:
    source, shard = shards[0].parent, shards[OWN_SHARDS][0].stat().st_size
    loaded = loader.load(source, SPAN, tmp_path, "float32", quantization)
    assert loaded.peak < loaded.span + shard
    assert loaded.kept < loaded.span + shard / 4
    assert loaded.kept > loaded.span / 2, "what was measured is not where the weights are"
