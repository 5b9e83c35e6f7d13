"""`far-node start`: one node here, or one on each device under a parent."""

import signal
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import typer

from mesh import log as logging
from mesh.errors import WeightsChanged, WeightsUnreachable
from mesh.node_api import Span
from node_runner.cli import credentials, options
from node_runner.cli.console import errors, fail
from node_runner.service import device_processes, exit_codes
from node_runner.service.auto_update import PYPI, Updater, is_checkout
from node_runner.service.schedule import InvalidSchedule, Schedule, parse

PARENT_OPTIONS = ("gpu", "device", "schedule", "auto_update", "update_index")
"""What a node under a parent is not given, or given otherwise."""

SECRET_OPTIONS = ("redis", "path")
"""URLs, which may hold a password: passed by the environment, since all users of a machine may read
each other's command lines."""


def start(
    context: typer.Context,
    model: options.Model,
    wallet: options.Wallet = None,
    discovery: options.Discovery = None,
    keyfile: options.Keyfile = None,
    gpu: options.Gpu = None,
    device: options.Device = None,
    span: options.Layers = None,
    quantization: options.Quantization = "none",
    memory_gb: options.MemoryGb = None,
    kv_gb: options.KvGb = 1.0,
    max_sessions: options.MaxSessions = None,
    min_price: options.MinPrice = None,
    threads: options.Threads = 1,
    schedule: options.Schedule = None,
    auto_update: options.AutoUpdate = False,
    update_index: options.UpdateIndex = PYPI,
    redis: options.Redis = None,
    dht_peers: options.DhtPeers = None,
    operator_key: options.OperatorKey = None,
    announce: options.Announce = True,
    path: options.CheckpointPath = None,
    edge: options.Edge = False,
    dtype: options.Dtype = "auto",
    batch_invariant: options.BatchInvariant = True,
    wire: options.Wire = "auto",
    speculate: options.Speculate = True,
    draft: options.Draft = None,
    paged: options.Paged = True,
    public_addr: options.PublicAddr = "0.0.0.0:31330",
    location: options.Location = "unknown",
    cache: options.Cache = options.CACHE,
    cache_gb: options.CacheGb = None,
    verify: options.Verify = False,
    metrics_port: options.MetricsPort = 0,
) -> None:
    """Register, load the span, and pull work until Ctrl-C or SIGTERM (which drains).

    [bold]far-node start --model M[/] is enough after a login.

    [bold]far-node start --model M --gpu 0 --gpu 1[/] serves on two GPUs.

    [bold]far-node start --model M --schedule 22:00-08:00 --max-sessions 4[/] serves at night.

    [bold]far-node start --model M --keyfile wallet.json --discovery URL[/] needs no login.
    """
    logging.configure(json=not errors.is_terminal)
    devices = _devices(gpu or [], device or [])
    windows = _schedule(schedule)
    if auto_update and is_checkout():
        raise fail("--auto-update is for an installed far-node; this one runs from a checkout.")
    _check_sessions(max_sessions)
    min_price = _price(min_price)
    layers = _span(span)
    credential = credentials.choose(wallet, discovery, keyfile, lookup=bool(dht_peers))
    if len(devices) > 1 or windows is not None or auto_update:
        changes = {"wallet": credential.wallet, "discovery": credential.discovery}
        status = device_processes.run(
            [_device_process(context, changes, each, index) for index, each in enumerate(devices)],
            identity={
                "model_id": model,
                "wallet_address": credential.wallet,
                "discovery": credential.discovery,
            },
            schedule=windows,
            updater=Updater(update_index) if auto_update else None,
        )
        raise typer.Exit(status)
    # SIGINT and SIGTERM end a start, and clean up; once the node serves, they drain it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    device_processes.end_with_parent()
    # Imported now: torch takes seconds, and no other command needs it.
    from node_runner.node.lifecycle import serve
    from node_runner.node.options import CannotServe, NodeOptions

    try:
        serve(
            NodeOptions(
                model=model,
                wallet=credential.wallet,
                discovery=credential.discovery,
                dht_peers=tuple(
                    peer.strip() for peer in (dht_peers or "").split(",") if peer.strip()
                ),
                operator_key=operator_key,
                announce=announce,
                credential=credential.secret,
                redis=redis,
                path=path,
                span=layers,
                edge=edge,
                device=devices[0],
                dtype=dtype,
                batch_invariant=batch_invariant,
                quantization=quantization,
                memory_gb=memory_gb,
                kv_gb=kv_gb,
                threads=threads,
                wire=wire,
                speculate=speculate,
                draft=draft,
                paged=paged,
                public_addr=public_addr,
                location=location,
                cache=cache,
                cache_gb=cache_gb,
                verify=verify,
                metrics_port=metrics_port,
                max_sessions=max_sessions,
                min_price=min_price,
            )
        )
    except CannotServe as error:
        raise fail(str(error), _status(error)) from None
    except KeyboardInterrupt:
        errors.print("Stopped before it served.")


def _status(error: Exception) -> int:
    """The exit status of a node that cannot serve: what it met may pass by itself, or has to be
    changed."""
    from node_runner.dht.platform_lookup import PlatformLookupFailed
    from node_runner.node.options import TemporaryFailure
    from node_runner.transport.interface import TransportUnreachable

    temporary = (PlatformLookupFailed, TransportUnreachable, WeightsUnreachable, WeightsChanged)
    if isinstance(error, TemporaryFailure) or isinstance(error.__context__, temporary):
        return exit_codes.TEMPORARY_FAILURE
    return exit_codes.CONFIG_ERROR


def known_settings(command: Any) -> dict[str, bool]:
    """What a settings' file may set: the options of `far-node start`, and whether each may be given
    more than once."""
    return {each.name: each.multiple for each in command.params if _is_option(each)}


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option") and parameter.name != "help"


def _device_process(
    context: typer.Context, changes: dict[str, str | None], device: str, index: int
) -> device_processes.DeviceProcess:
    """How to start the node of one device: with this process's options, wherever they came from."""
    values: dict[str, Any] = {**context.params, **changes}
    if values["metrics_port"]:
        values["metrics_port"] += index
    arguments = ["--device", device]
    environment: dict[str, str] = {}
    for parameter in context.command.params:
        value = values.get(parameter.name)
        if not _is_option(parameter) or parameter.name in PARENT_OPTIONS or value is None:
            continue
        if parameter.name in SECRET_OPTIONS:
            environment[str(parameter.envvar)] = str(value)
        else:
            arguments += _flag(parameter, value)
    command = [sys.executable, "-m", "node_runner.cli", "start", *arguments]
    return device_processes.DeviceProcess(device, command, environment)


def _flag(parameter: Any, value: object) -> Sequence[str]:
    if isinstance(value, bool):
        off = parameter.secondary_opts
        return [parameter.opts[0]] if value else off[:1]
    return [parameter.opts[0], str(value)]


def _devices(gpus: list[int], devices: list[str]) -> list[str]:
    chosen = [*(f"cuda:{index}" for index in gpus), *devices] or ["auto"]
    twice = {each for each in chosen if each.startswith("cuda") and chosen.count(each) > 1}
    if twice:
        raise fail(f"Named twice: {', '.join(sorted(twice))}. A GPU holds one node.")
    return chosen


def _span(text: str | None) -> Span | None:
    if text is None:
        return None
    begin, _, end = text.partition(":")
    try:
        return int(begin), int(end)
    except ValueError:
        raise fail(f"--span is START:END, such as 0:8; got {text!r}.") from None


def _schedule(text: str | None) -> Schedule | None:
    try:
        return None if text is None else parse(text)
    except InvalidSchedule as error:
        raise fail(f"--schedule: {error}") from None


def _check_sessions(max_sessions: int | None) -> None:
    if max_sessions is not None and max_sessions < 1:
        raise fail(f"--max-sessions is at least 1; got {max_sessions}.")


def _price(text: str | None) -> str | None:
    """As the platform takes it: without a sign or an exponent."""
    try:
        price = None if text is None else Decimal(text)
        good = price is None or 0 <= price < Decimal(10**20)
    except InvalidOperation:
        good = False
    if not good:
        raise fail(f"--min-price is an amount of FAR such as 0.0001; got {text!r}.")
    return None if price is None else f"{abs(price):f}"
