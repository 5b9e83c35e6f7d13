"""A checkpoint on a web server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from node_runner.weights import download_plan, http_source
from tests.support.file_server import FileServer, serving
from tests.support.sharding import copy_all_but_weights, save_shards
from tests.support.spans import CHUNK

QUICK = http_source.RetryPolicy(attempts=4, first=0.001, longest=0.002)


@pytest.fixture
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_plan, "CHUNK", CHUNK)
    monkeypatch.setattr(http_source, "RETRY_POLICY", QUICK)


@pytest.fixture(params=["one file", "shards"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The demo model in float16, whose head is its own or tied as it is there."""
    made = tmp_path / "model"
    tensors = {name: one.half() for name, one in copy_all_but_weights(made).items()}
    if request.param == "one file":
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    else:
        save_shards(tensors, made, layers=2)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serving(folder) as running:
        yield running
