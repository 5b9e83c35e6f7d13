"""Benchmarks are not run here, but they start."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

import benchmarks
from benchmarks import footprint, joining
from benchmarks.running import installing, newcomer

MODULES = [module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name: str) -> None:
    importlib.import_module(name)


def log_of_a_start(*, fetched: bool) -> list[str]:
    """A node's log: an event each half second, and what a library says between."""
    names = ["node_starting", "node_registered", "weights_ready", "span_loaded", "node_started"]
    lines = [
        json.dumps({"event": name, "timestamp": f"2026-11-24T12:00:{10 + number / 2:04.1f}Z"})
        for number, name in enumerate(names)
        if fetched or name != "weights_ready"
    ]
    later = json.dumps({"event": "span_loaded", "timestamp": "2026-11-24T13:00:00Z"})
    return [lines[0], "a library's warning", *lines[1:], later]


def test_a_start_is_cut_into_phases_without_gaps() -> None:
    events = newcomer.logged(log_of_a_start(fetched=True))
    typed = events["node_starting"]["at"] - 4
    found = newcomer.phases(typed, events, on_routes=typed + 6.25, first=typed + 8)
    assert found == {
        "imports": 4,
        "registering": 0.5,
        "fetching": 0.5,
        "loading": 0.5,
        "connecting": 0.5,
        "on_routes": 0.25,
        "first_token": 1.75,
    }
    assert newcomer.Joined(found, 0, (2, 4), same=True).seconds == 8


def test_what_a_cache_had_was_not_fetched() -> None:
    events = newcomer.logged(log_of_a_start(fetched=False))
    typed = events["node_starting"]["at"]
    found = newcomer.phases(typed, events, on_routes=typed, first=typed + 3)
    assert (found["fetching"], found["loading"], found["on_routes"]) == (0, 1, 0)
    assert sum(found.values()) == 3


def test_what_a_line_carries() -> None:
    assert joining.transfer_seconds(10**9, 100) == 80
    config = dict(footprint.MODELS["Llama-2-7B"])
    layers, size = joining.half_of(config)
    parameters = 4 * 4096**2 + 3 * 4096 * 11008
    assert layers == 16
    assert size == pytest.approx(16 * 2 * parameters, rel=0.002)
    took = joining.transfer_seconds(size, 50)
    assert joining.layers_within(config, took * 1.001, 50) == 16
    assert joining.layers_within(config, took * 0.999, 50) == 15
    assert joining.layers_within(config, 10**6, 50) == 32
    assert joining.layers_within(config, -1, 50) == 0


def test_wheels_that_lie_here_are_told_from_downloads(tmp_path: Path) -> None:
    urls = ["https://example.org/a.whl", f"file://{tmp_path}/b%2Bcpu.whl", f"file://{tmp_path}/c"]
    told = [{"download_info": {"url": url}} for url in urls]
    assert installing.local_wheels(told) == [tmp_path / "b+cpu.whl"]


def test_what_pip_downloads_is_counted() -> None:
    said = """Processing ./torch.whl (from far-mesh==0.1.0)
  Downloading typer-0.1-py3-none-any.whl.metadata (5.4 kB)
Downloading typer-0.1-py3-none-any.whl (59.1 MB)
  Using cached rich-1-py3-none-any.whl (300 kB)
  Downloading six.whl (812 bytes)
"""
    assert installing.downloaded(said) == 59_100_000 + 5_400 + 812


def test_bytes_of_a_folder_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "one").write_bytes(b"12")
    (tmp_path / "below" / "two").write_bytes(b"345")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert installing.bytes_below(tmp_path) == 5
