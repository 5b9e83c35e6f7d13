"""Weights from a hub: only the files that a span needs are asked for.

The hub is a small server on loopback that answers as the real one does (there is none in reach of
a test machine).
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import DEMO_MODEL

REPOSITORY = "somebody/some-model"


class Hub:
    """Serves a folder as a repository, and remembers which files were asked for."""

    def __init__(self, folder: Path) -> None:
        asked = self.asked = set[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                name = self.path.partition("?")[0].partition("/resolve/main/")[2]
                file = folder / name
                if not name or not file.is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = file.read_bytes()
                if with_body:
                    asked.add(name)
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if with_body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The demo model, a shard a layer and one for the rest."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).write_text((DEMO_MODEL / name).read_text())
    tensors = load_file(DEMO_MODEL / "model.safetensors")
    weight_map = {
        name: f"layer-{name.split('.')[2]}.safetensors"
        if ".layers." in name
        else "rest.safetensors"
        for name in tensors
    }
    for shard in set(weight_map.values()):
        part = {name: tensors[name] for name, where in weight_map.items() if where == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def hub(sharded: Path) -> Iterator[Hub]:
    made = Hub(sharded)
    yield made
    made.close()


def in_fresh_process(hub: Hub, home: Path, code: str) -> str:
    """huggingface_hub reads its endpoint and cache from the environment when imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def test_a_middle_span_asks_for_its_own_shards_only(hub: Hub, tmp_path: Path) -> None:
    printed = in_fresh_process(
        hub,
        tmp_path,
        "from pathlib import Path\n"
        "from node_runner.engine.loader import prepare_span\n"
        f"folder, spec = prepare_span({REPOSITORY!r}, layers=(2, 4), edge=False,"
        f" cache=Path({str(tmp_path / 'spans')!r}))\n"
        "print(folder)",
    )
    assert len(load_file(Path(printed) / "model.safetensors")) == 2 * 9
    assert hub.asked == {
        "config.json",
        "model.safetensors.index.json",
        "layer-2.safetensors",
        "layer-3.safetensors",
    }


def test_a_checkpoint_in_one_file_needs_no_index(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    for shard in sharded.glob("*.safetensors*"):
        shard.unlink()
    (sharded / "model.safetensors").write_bytes((DEMO_MODEL / "model.safetensors").read_bytes())
    printed = in_fresh_process(
        hub,
        tmp_path,
        "from pathlib import Path\n"
        "from node_runner.engine.loader import prepare_span\n"
        f"folder, spec = prepare_span({REPOSITORY!r}, layers=(0, 2), edge=True,"
        f" cache=Path({str(tmp_path / 'spans')!r}))\n"
        "print(folder)",
    )
    assert (Path(printed) / "tokenizer.json").exists()
    assert hub.asked >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_the_gateway_reads_sizes_and_tokenizer_but_no_weights(hub: Hub, tmp_path: Path) -> None:
    printed = in_fresh_process(
        hub,
        tmp_path,
        "from mesh.catalog import load_model\n"
        "from mesh.settings import ModelSettings\n"
        f"model = load_model(ModelSettings(id={REPOSITORY!r}, payment_per_token='0.1'))\n"
        "print(model.layers, len(model.tokenizer.encode('hello').ids) > 0)",
    )
    assert printed == "6 True"
    assert hub.asked == {"config.json", "tokenizer.json"}
