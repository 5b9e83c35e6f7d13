"""A span's weights over HTTP: only its own bytes, resumed, checked, and refused when wrong."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mesh.checkpoint.manifest import NAME, make_manifest
from mesh.checkpoint.safetensors_header import LENGTH_BYTES
from mesh.errors import (
    WeightsChanged,
    WeightsCorrupt,
    WeightsError,
    WeightsMissing,
    WeightsRefused,
    WeightsUnreachable,
)
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel
from node_runner.weights import checkpoint_cache, download_plan
from tests.conftest import MODEL_ID
from tests.support.engine.spans import CHUNK, copied, data_bytes, fetched, refuse, same
from tests.support.network.file_server import FileServer
from tests.support.some_slow import some_slow

pytestmark = pytest.mark.usefixtures("small_and_quick")


@pytest.mark.parametrize("layers", some_slow([(0, 2), (1, 5), (5, 6), (0, 6)], quick=[(1, 5)]))
def test_the_file_is_the_librarys_to_the_byte(
    folder: Path, server: FileServer, tmp_path: Path, layers: tuple[int, int]
) -> None:
    made = fetched(server, tmp_path, layers)
    assert same(made, copied(folder, tmp_path, layers))
    save_file(load_file(made / "model.safetensors"), tmp_path / "again", metadata={"format": "pt"})
    assert (tmp_path / "again").read_bytes() == (made / "model.safetensors").read_bytes()
    assert (made / "tokenizer.json").exists() == (layers[0] == 0)


def test_only_the_spans_bytes_are_given(folder: Path, server: FileServer, tmp_path: Path) -> None:
    made = fetched(server, tmp_path)
    headers = sum(
        LENGTH_BYTES + int.from_bytes(file.read_bytes()[:LENGTH_BYTES], "little")
        for file in folder.glob("*.safetensors")
        if file.name in server.names
    )
    assert server.weights_given() == data_bytes(made) + headers
    assert "rest.safetensors" not in server.names
    weights = [one for one in server.asked if one.name.endswith(".safetensors")]
    assert max(one.end - one.start for one in weights) == CHUNK
    assert len(weights) < data_bytes(made) / CHUNK + 12, "neighbours were not merged"


def test_a_span_that_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    first = fetched(server, tmp_path)
    server.reset()
    assert fetched(server, tmp_path) == first
    assert server.weights_given() < 20_000, "headers alone"


def test_after_cuts_only_what_is_missing_is_asked_for(
    folder: Path, server: FileServer, tmp_path: Path
) -> None:
    server.faults.cuts = [3000, 10_000, 4096, 20_000, 1024]
    made = fetched(server, tmp_path)
    assert same(made, copied(folder, tmp_path))
    assert not server.faults.cuts
    # What was sent before a cut was kept, up to what lay in sockets when they closed.
    assert server.weights_given() <= data_bytes(made) + 5 * 20_000


@pytest.mark.parametrize("status", some_slow([408, 429, 500, 502, 503], quick=[429]))
def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path, status: int) -> None:
    server.faults.statuses = [status] * 3
    server.faults.retry_after = "0"
    assert fetched(server, tmp_path)


def test_a_server_that_stays_busy_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.faults.statuses = [503] * 100
    with pytest.raises(WeightsUnreachable, match=r"HTTP 503 \(4 attempts\)"):
        fetched(server, tmp_path)


def test_a_server_that_is_gone_is_told_of_unless_the_span_is_there(
    server: FileServer, tmp_path: Path
) -> None:
    made = fetched(server, tmp_path)
    server.close()
    assert fetched(server, tmp_path) == made
    with pytest.raises(WeightsUnreachable):
        fetched(server, tmp_path, (2, 4))


def test_what_ignores_ranges_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.faults.ignores_range = True
    refuse(server, tmp_path, WeightsRefused, "ignores Range")
    assert server.weights_given() < 2 * 2**20, "whole files were read"


def test_another_range_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.faults.shorter_ranges = True
    refuse(server, tmp_path, WeightsRefused, "asked for bytes")


def test_more_bytes_than_asked_for_are_refused(server: FileServer, tmp_path: Path) -> None:
    server.faults.longer_bodies = True
    refuse(server, tmp_path, WeightsRefused, "more bytes")


@pytest.mark.parametrize("what", ["tag", "size", "gone"])
def test_a_file_that_changes_meanwhile_is_noticed(
    folder: Path, server: FileServer, tmp_path: Path, what: str
) -> None:
    changed = threading.Event()

    def change() -> None:
        if changed.is_set():
            return
        changed.set()
        for file in folder.glob("*.safetensors"):
            if what == "tag":
                file.write_bytes(file.read_bytes()[:-1] + b"\xff")
            elif what == "size":
                file.write_bytes(file.read_bytes() + bytes(8))
            else:
                file.unlink()

    server.faults.no_tag = what == "size"
    server.faults.on_piece = change
    # Between two looks at headers, a longer file is one whose header does not fit.
    errors = {"gone": WeightsMissing, "tag": WeightsChanged, "size": WeightsError}
    refuse(server, tmp_path, errors[what], "has no|bytes now;|changed|header tells of")


def test_a_source_without_this_model_is_told_of(server: FileServer, tmp_path: Path) -> None:
    (server.folder / "config.json").unlink()
    refuse(server, tmp_path, WeightsMissing, r"has no config.json")


def test_files_that_are_not_to_be_had(server: FileServer, tmp_path: Path) -> None:
    server.tokens = {"a=token"}
    refuse(server, tmp_path, WeightsError, r"refuses .* \(HTTP 403\)")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_made_anew(server: FileServer, tmp_path: Path) -> None:
    file = fetched(server, tmp_path) / "model.safetensors"
    good = file.read_bytes()
    for damage in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        file.write_bytes(damage)
        assert (fetched(server, tmp_path) / "model.safetensors").read_bytes() == good
    (file.parent / checkpoint_cache.RECORD_FILE).unlink()
    assert (fetched(server, tmp_path) / "model.safetensors").read_bytes() == good


def test_verifying_finds_what_size_and_time_hide(server: FileServer, tmp_path: Path) -> None:
    file = fetched(server, tmp_path) / "model.safetensors"
    good, stat = file.read_bytes(), file.stat()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (fetched(server, tmp_path) / "model.safetensors").read_bytes() != good
    prepare_span(server.url, layers=(1, 5), edge=False, cache=tmp_path / "spans", verify=True)
    assert file.read_bytes() == good


def test_a_file_that_was_only_touched_is_kept(server: FileServer, tmp_path: Path) -> None:
    file = fetched(server, tmp_path) / "model.safetensors"
    file.touch()
    inode = file.stat().st_ino
    assert (fetched(server, tmp_path) / "model.safetensors").stat().st_ino == inode


def test_a_manifest_spares_headers_and_checks_each_tensor(
    folder: Path, server: FileServer, tmp_path: Path
) -> None:
    (folder / NAME).write_bytes(make_manifest(folder, MODEL_ID).to_bytes())
    made = fetched(server, tmp_path)
    assert same(made, copied(folder, tmp_path))
    assert server.weights_given() == data_bytes(made)
    assert json.loads((made / checkpoint_cache.RECORD_FILE).read_text())["checked"] == "manifest"


@pytest.mark.parametrize("what", ["weights", "config.json"])
def test_bytes_of_another_hash_are_refused(
    folder: Path, server: FileServer, tmp_path: Path, what: str
) -> None:
    (folder / NAME).write_bytes(make_manifest(folder, MODEL_ID).to_bytes())
    with safe_open(copied(folder, tmp_path, (4, 5)) / "model.safetensors", "pt") as one:
        part = one.get_tensor("model.layers.0.mlp.up_proj.weight").numpy().tobytes()
    for file in folder.glob("*.safetensors" if what == "weights" else what):
        content = file.read_bytes()
        flipped = bytes([content[-2] ^ 1]) + content[-1:]
        changed = content.replace(part, part[:-1] + bytes([part[-1] ^ 1]))
        file.write_bytes(changed if what == "weights" else content[:-2] + flipped)
    match = r"layers.4.mlp.up_proj" if what == "weights" else r"config.json .* not what was"
    refuse(server, tmp_path, WeightsCorrupt, match)
    assert not list((tmp_path / "spans").glob(".making-*")), "what is wrong was kept"


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_quantizers_load_it(server: FileServer, tmp_path: Path, quantization: str) -> None:
    span = SpanModel(
        fetched(server, tmp_path, (1, 3)),
        edge=False,
        device=torch.device("cpu"),
        dtype=torch.float32,
        quantization=quantization,
    )
    assert span.layers == 2


@pytest.mark.parametrize(
    "index",
    [
        "{}",
        "[",
        '{"weight_map": []}',
        '{"weight_map": {"model.layers.1.x": "../../etc/passwd"}}',
        '{"weight_map": {"model.layers.1.x": 7}}',
        '{"weight_map": {"model.layers.1.nowhere": "NAMED"}}',
    ],
)
def test_an_index_that_lies_is_refused(
    folder: Path, server: FileServer, tmp_path: Path, index: str
) -> None:
    shard = max(folder.glob("*.safetensors")).name
    (folder / download_plan.INDEX).write_text(index.replace("NAMED", shard))
    refuse(server, tmp_path, WeightsRefused, "index")
