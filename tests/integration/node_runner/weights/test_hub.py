"""Weights from a hub: only the files that a span needs are asked for.

The hub is a small server on loopback that answers as the real one does (there is none in reach of
a test machine).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mesh.errors import UnsupportedModel, WeightsError
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.weights import hub_source as sources
from tests.conftest import DEMO_MODEL
from tests.support.engine.sharding import copy_all_but_weights, save_shards
from tests.support.network.file_server import FileServer, serving

REPOSITORY = "somebody/some-model"
COMMIT = "c" * 40
"""What the server calls the branch's newest."""


class Hub:
    """Serves a folder as a repository, at its branch and at its commit."""

    def __init__(self, folder: Path, root: Path) -> None:
        revisions = root / REPOSITORY / "resolve"
        revisions.mkdir(parents=True)
        for revision in ("main", COMMIT):
            (revisions / revision).symlink_to(folder)
        self.root = root
        self.server = FileServer(root)
        self.url = self.server.url
        self.close = self.server.close

    @property
    def given(self) -> dict[str, int]:
        """Bytes that went out, by file."""
        return {Path(name).name: count for name, count in self.server.given.items()}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The demo model, a shard a layer and one for the rest."""
    folder = tmp_path / "repository"
    save_shards(copy_all_but_weights(folder), folder, layers=1)
    return folder


@pytest.fixture
def hub(sharded: Path, tmp_path: Path) -> Iterator[Hub]:
    made = Hub(sharded, tmp_path / "hub")
    yield made
    made.close()


def in_fresh_process(hub: Hub, home: Path, code: str) -> str:
    """huggingface_hub reads its endpoint and cache from the environment when imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()[-1]


def span_of_hub(hub: Hub, tmp_path: Path, layers: tuple[int, int], *, edge: bool) -> Path:
    return Path(
        in_fresh_process(
            hub,
            tmp_path,
            "from pathlib import Path\n"
            "from node_runner.engine.model.span_checkpoint import prepare_span\n"
            f"folder, _ = prepare_span({REPOSITORY!r}, layers={layers}, edge={edge},"
            f" cache=Path({str(tmp_path / 'spans')!r}))\n"
            "print(folder)",
        )
    )


@pytest.mark.slow
def test_a_middle_span_asks_for_its_own_shards_only(hub: Hub, tmp_path: Path) -> None:
    folder = span_of_hub(hub, tmp_path, (2, 4), edge=False)
    assert len(load_file(folder / "model.safetensors")) == 2 * 9
    assert hub.given.keys() == {
        "config.json",
        "model.safetensors.index.json",
        "layers-2.safetensors",
        "layers-3.safetensors",
    }


@pytest.mark.slow
def test_of_a_checkpoint_in_one_file_the_spans_bytes_come(
    hub: Hub, sharded: Path, tmp_path: Path
) -> None:
    for shard in sharded.glob("*.safetensors*"):
        shard.unlink()
    whole = (DEMO_MODEL / "model.safetensors").read_bytes()
    (sharded / "model.safetensors").write_bytes(whole)
    folder = span_of_hub(hub, tmp_path, (0, 2), edge=True)
    assert (folder / "tokenizer.json").exists()
    ours = (folder / "model.safetensors").stat().st_size
    assert 0.95 * ours < hub.given["model.safetensors"] < min(1.05 * ours, 0.9 * len(whole))


@pytest.mark.parametrize(
    ("file", "setting", "read"),
    [
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, {"config.json"}),
        (
            "generation_config.json",
            {"guidance_scale": 2.0},
            {"config.json", "generation_config.json"},
        ),
    ],
)
def test_what_is_refused_is_refused_before_weights_are_asked_for(
    file: str,
    setting: dict[str, object],
    read: set[str],
    hub: Hub,
    sharded: Path,
    tmp_path: Path,
) -> None:
    settings = json.loads((sharded / file).read_text()) | setting
    (sharded / file).unlink()
    (sharded / file).write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModel, match=next(iter(setting))):
        prepare_span(
            hub.url + "/" + REPOSITORY + "/resolve/main",
            layers=(0, 2),
            edge=True,
            cache=tmp_path / "cache",
        )
    assert hub.given.keys() == read


def test_the_gateway_reads_sizes_and_tokenizer_but_no_weights(hub: Hub, tmp_path: Path) -> None:
    printed = in_fresh_process(
        hub,
        tmp_path,
        "from market.catalog.models import load_model\n"
        "from market.settings.models import ModelSettings\n"
        f"model = load_model(ModelSettings(id={REPOSITORY!r}, payment_per_token='0.1'))\n"
        "print(model.layers, len(model.tokenizer.encode('hello').ids) > 0)",
    )
    assert printed == "6 True"
    assert hub.given.keys() == {"config.json", "generation_config.json", "tokenizer.json"}


@pytest.fixture
def storage(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Where the hub, which wants a token of us, sends those who ask for weights."""
    with serving(hub.root) as server:
        hub.server.redirect = server.url.replace("127.0.0.1", "localhost")
        hub.server.bearer = "hf_secret"
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield server


def test_the_hubs_token_goes_to_the_hub_only(hub: Hub, storage: FileServer, sharded: Path) -> None:
    """And the storage's address is used as long as it holds."""
    expected = (sharded / "layers-2.safetensors").read_bytes()
    source = sources.open_hub(REPOSITORY)
    version, _ = source.head("layers-2.safetensors", 8)
    assert b"".join(source.stream("layers-2.safetensors", version, 0, len(expected))) == expected
    source.close()
    assert len(storage.asked) == 2
    assert not any("Authorization" in asked.headers for asked in storage.asked)
    assert hub.server.redirected == 1


def test_an_address_that_has_expired_is_asked_for_again(
    hub: Hub, storage: FileServer, sharded: Path
) -> None:
    expected = (sharded / "layers-2.safetensors").read_bytes()
    source = sources.open_hub(REPOSITORY)
    hub.server.signature, storage.tokens = "signed=1", {"signed=1"}
    version, _ = source.head("layers-2.safetensors", 8)
    hub.server.signature, storage.tokens = "signed=2", {"signed=2"}
    pieces = source.stream("layers-2.safetensors", version, 0, len(expected))
    assert b"".join(pieces) == expected
    source.close()
    assert hub.server.redirected == 2


def test_what_is_private_says_which_token_is_missing(
    hub: Hub, storage: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    source = sources.open_hub(REPOSITORY)
    with pytest.raises(WeightsError, match="HF_TOKEN"):
        source.head("layers-2.safetensors", 8)
    source.close()
