"""Processes that fetch weights: killed, ended, side by side."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.checkpoint.manifest import NAME, make_manifest
from mesh.checkpoint.safetensors_header import LENGTH_BYTES
from mesh.errors import (
    WeightsUnreachable,
)
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.weights import http_source, range_assembly
from node_runner.weights.published_source import open_url
from tests.conftest import MODEL_ID
from tests.support.engine.spans import CHUNK, ONE_FILE_IS_SLOW, copied, data_bytes, fetched, same
from tests.support.network.file_server import Faults, FileServer, serving

pytestmark = pytest.mark.usefixtures("small_and_quick")

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


@pytest.mark.slow
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
        pytest.param(lambda journal: journal + bytes(100), True, id="zeros at the end"),
        pytest.param(
            lambda journal: journal + bytes(100) + b"\n1\n",
            True,
            id="zeros before more",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda journal: journal.replace(b"\n", b"\n\xff\n"),
            False,
            id="nonsense",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda journal: bytes(len(journal)), False, id="zeros alone", marks=pytest.mark.slow
        ),
    ],
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


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["one file"], indirect=True)
@pytest.mark.parametrize(
    ("server_is", "serves_meanwhile"),
    [
        ("silent", False),
        ("busy", True),
        ("busy", False),
        ("silent", True),
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


@pytest.mark.slow
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
