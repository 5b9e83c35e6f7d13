"""A span's weights over HTTP: only its own bytes, resumed, checked, and refused when wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mesh.checkpoint.manifest import NAME, make_manifest
from mesh.checkpoint.safetensors_header import LENGTH_BYTES
from mesh.errors import (
    MeshError,
    WeightsChanged,
    WeightsCorrupt,
    WeightsError,
    WeightsMissing,
    WeightsRefused,
    WeightsUnreachable,
)
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel
from node_runner.weights import checkpoint_cache, download_plan, http_source, range_assembly
from node_runner.weights.published_source import open_url
from tests.conftest import MODEL_ID
from tests.support.file_server import Faults, FileServer, serving
from tests.support.sharding import copy_all_but_weights, save_shards

CHUNK = 50_000
QUICK = http_source.RetryPolicy(attempts=4, first=0.001, longest=0.002)


@pytest.fixture(autouse=True)
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


ONE_FILE_IS_SLOW = pytest.mark.parametrize(
    "folder", [pytest.param("one file", marks=pytest.mark.slow), "shards"], indirect=True
)
"""For tests of processes, each of which imports torch."""


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serving(folder) as running:
        yield running


def fetched(server: FileServer, tmp_path: Path, layers: tuple[int, int] = (1, 5)) -> Path:
    """The span, from the server."""
    made, _ = prepare_span(server.url, layers=layers, edge=layers[0] == 0, cache=tmp_path / "spans")
    return made


def copied(folder: Path, tmp_path: Path, layers: tuple[int, int] = (1, 5)) -> Path:
    """The span, from the folder that the server serves."""
    made, _ = prepare_span(
        str(folder), layers=layers, edge=layers[0] == 0, cache=tmp_path / "copied"
    )
    return made


def same(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def data_bytes(span: Path) -> int:
    """Of its tensors."""
    content = (span / "model.safetensors").read_bytes()
    return len(content) - LENGTH_BYTES - int.from_bytes(content[:LENGTH_BYTES], "little")


@pytest.mark.parametrize("layers", [(0, 2), (1, 5), (5, 6), (0, 6)])
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


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
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


def refuse(server: FileServer, tmp_path: Path, error: type[MeshError], match: str) -> None:
    with pytest.raises(error, match=match):
        fetched(server, tmp_path)
    assert not list((tmp_path / "spans").glob("[!.]*")), "nothing that could be taken for a span"


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


KILLED = """
import sys
from pathlib import Path
from node_runner.weights import download_plan
download_plan.CHUNK = {chunk}
from node_runner.engine.model.span_checkpoint import prepare_span
print(prepare_span({url!r}, layers=(1, 5), edge=False, cache=Path({cache!r}))[0])
"""


ALONE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it
exec(sys.argv[1])
"""
BESIDE = """
import sys, threading
threading.Thread(target=lambda: exec(sys.argv[1]), daemon=True).start()
sys.stdin.read()
"""
"""The same as a node does that serves meanwhile: in a thread, until it is to end."""


def start(server: FileServer, tmp_path: Path, *, beside: bool = False) -> "subprocess.Popen[str]":
    code = KILLED.format(chunk=CHUNK, url=server.url, cache=str(tmp_path / "spans"))
    return subprocess.Popen(
        [sys.executable, "-c", BESIDE if beside else ALONE, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@ONE_FILE_IS_SLOW
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(
    folder: Path, server: FileServer, tmp_path: Path
) -> None:
    reference = copied(folder, tmp_path)
    total = data_bytes(reference)
    journal = f"*/{range_assembly.JOURNAL}"

    def noted() -> int:
        found = list((tmp_path / "spans").glob(journal))
        return len(found[0].read_text().splitlines()) - 1 if found else 0

    halfway = threading.Event()
    go_on = threading.Event()

    def wait_at_half() -> None:
        if server.weights_given() > total / 2 and noted() > 5:
            halfway.set()
            go_on.wait(60)

    server.faults.on_piece = wait_at_half
    process = start(server, tmp_path)
    assert halfway.wait(90)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = noted()
    server.faults.on_piece = lambda: None
    go_on.set()
    assert not list((tmp_path / "spans").glob("[!.]*"))
    with serving(folder) as fresh:
        server, old = fresh, server
        made, _ = prepare_span(
            old.url,
            layers=(1, 5),
            edge=False,
            cache=tmp_path / "spans",
            opened=lambda: _as(old, fresh),
        )
        headers = sum(
            LENGTH_BYTES + int.from_bytes(file.read_bytes()[:LENGTH_BYTES], "little")
            for file in folder.glob("*.safetensors")
            if file.name in fresh.names
        )
        given = fresh.weights_given() - headers
    assert same(made, reference)
    assert there > 5
    assert given <= total - (there - 5) * CHUNK / 2
    assert given < total * 0.7


@pytest.mark.parametrize("folder", ["one file"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda journal: journal + bytes(100), True),
        (lambda journal: journal + bytes(100) + b"\n1\n", True),
        (lambda journal: journal.replace(b"\n", b"\n\xff\n"), False),
        (lambda journal: bytes(len(journal)), False),
    ],
    ids=["zeros at the end", "zeros before more", "nonsense", "zeros alone"],
)
def test_after_a_power_cut_what_the_journal_still_tells_counts(
    folder: Path,
    server: FileServer,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    kept: bool,
) -> None:
    reference = copied(folder, tmp_path)
    faults = server.faults

    def fail_at_half() -> None:
        if server.weights_given() > data_bytes(reference) / 2:
            faults.statuses = [503] * 100

    faults.on_piece = fail_at_half
    with pytest.raises(WeightsUnreachable):
        fetched(server, tmp_path)
    (journal,) = (tmp_path / "spans").glob(f"*/{range_assembly.JOURNAL}")
    assert len(journal.read_text().splitlines()) > 3
    journal.write_bytes(damage(journal.read_bytes()))
    server.faults = Faults()
    server.reset()
    assert same(fetched(server, tmp_path), reference)
    assert (server.weights_given() < 0.9 * data_bytes(reference)) == kept


def _as(old: FileServer, fresh: FileServer) -> http_source.HttpSource:
    """The new server under the old one's name, as a restarted one would be."""
    files = open_url(fresh.url)
    files.name = old.url
    return files


@pytest.mark.parametrize("folder", ["one file"], indirect=True)
@pytest.mark.parametrize(
    ("server_is", "serves_meanwhile"),
    [
        ("silent", False),
        ("busy", True),
        pytest.param("busy", False, marks=pytest.mark.slow),
        pytest.param("silent", True, marks=pytest.mark.slow),
    ],
)
def test_who_waits_for_weights_can_be_ended(
    folder: Path, server: FileServer, tmp_path: Path, server_is: str, serves_meanwhile: bool
) -> None:
    (folder / NAME).write_bytes(make_manifest(folder, MODEL_ID).to_bytes())
    silent, go_on = threading.Event(), threading.Event()

    def be_silent() -> None:
        silent.set()
        go_on.wait(120)

    busy = [503] * 1000
    if server_is == "busy":
        server.faults.statuses, server.faults.retry_after = busy, "120"
    server.faults.on_piece = be_silent
    process = start(server, tmp_path, beside=serves_meanwhile)
    try:
        assert wait_for(lambda: silent.is_set() or len(busy) <= 1000 - range_assembly.CONNECTIONS)
        if serves_meanwhile:
            _, told = process.communicate(timeout=10)
            assert process.returncode == 0, told
        else:
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=10)
            assert told.splitlines()[-1] == "KeyboardInterrupt"
    finally:
        process.kill()
        process.communicate()
        go_on.set()


def wait_for(look: Callable[[], bool]) -> bool:
    until = time.monotonic() + 90
    while not look() and time.monotonic() < until:
        time.sleep(0.05)
    return look()


@ONE_FILE_IS_SLOW
def test_two_processes_fetch_a_span_once(folder: Path, server: FileServer, tmp_path: Path) -> None:
    both = [start(server, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (output.splitlines()[-1] for output, _ in outputs)
    assert first == second
    made = Path(first)
    assert same(made, copied(folder, tmp_path))
    assert server.weights_given() < 1.3 * data_bytes(made)


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
