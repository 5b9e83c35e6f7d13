"""`far-node status` and `drain`: the nodes of this machine."""

import datetime as dt
import json
import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from node_runner.cli.console import console, errors, fail
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.http import client, request
from node_runner.service import control_socket

DRAIN_TIMEOUT = 90.0
"""Seconds that nodes get to leave: more than their generations get."""

POLL_SECONDS = 0.2
"""Between two checks whether nodes have left."""

EARNING_FIELDS = ("total_earned_far_exact", "total_tokens_served", "pending_payout_far_exact")
"""Fields that are shown."""

Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def status(as_json: Json = False) -> None:
    """What this machine's nodes do, what they earned, and why they get no work if they do not."""
    found = control_socket.ask_running_nodes()
    nodes = [node for node in found if node.get("kind") == "node"]
    earnings = {
        (node["discovery"], node["wallet_address"]): _earnings(node)
        for node in found
        if "wallet_address" in node and node["discovery"]  # which the DHT may be yet to tell
    }
    if as_json:
        wallets = [
            {"discovery": where, "wallet_address": wallet, "earnings": earned}
            for (where, wallet), earned in earnings.items()
        ]
        console.print_json(json.dumps({"running": found, "wallets": wallets}))
        return
    if not found:
        console.print("No node of yours runs here. Start one: [bold]far-node start --model M[/]")
        raise typer.Exit(3)  # as `systemctl status` of what does not run
    for parent in (each for each in found if each.get("kind") == "parent"):
        until = f" until {parent['until']}" if parent.get("until") else ""
        console.print(
            f"{len(parent['children'])} devices under one command: {parent['phase']}{until}.",
            markup=False,
        )
    if nodes:
        console.print(_table(nodes))
    for node in nodes:
        _show_skips(node)
    for (_, wallet), earned in earnings.items():
        _show_earnings(wallet, earned)


def drain(
    now: Annotated[
        bool, typer.Option("--no-wait", help="Ask, and do not wait until they have left.")
    ] = False,
) -> None:
    """Have this machine's nodes finish what they generate, and leave."""
    asked = control_socket.ask_running_nodes("drain")
    if not asked:
        console.print("No node of yours runs here.")
        return
    count = sum(each.get("kind") == "node" for each in asked)
    console.print(f"Asked {count} node{'s' if count != 1 else ''} to finish and leave.")
    deadline = time.monotonic() + DRAIN_TIMEOUT
    while not now and (left := control_socket.ask_running_nodes()):
        if time.monotonic() > deadline:
            raise fail(f"Still there: {', '.join(str(each['pid']) for each in left)}.")
        time.sleep(POLL_SECONDS)


def _earnings(node: dict[str, Any]) -> dict[str, Any] | None:
    try:
        with client(node["discovery"]) as http:
            path = f"/api/nodes/earnings/{node['wallet_address']}"
            return request(http, "GET", path, required=EARNING_FIELDS)
    except PlatformError as error:
        errors.print(str(error), style="yellow", markup=False)
        return None


def _table(nodes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in COLUMNS:
        text = heading in TEXT_COLUMNS
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for node in nodes:
        layers = node.get("layers")
        limit = node.get("max_sessions")
        table.add_row(
            escape(node.get("node_id", f"pid {node['pid']}")),
            escape(node["model_id"]),
            f"{layers[0]}:{layers[1]}{' + edge' if node['edge'] else ''}" if layers else "",
            escape(node["device"]),
            f"[{COLOURS.get(node['phase'], 'yellow')}]{escape(node['phase'])}[/]",
            "" if layers is None else f"{node['sessions']}{f' of {limit}' if limit else ''}",
            "" if layers is None else f"{node['tokens_per_second']:.1f}",
            "" if layers is None else f"{node['step_ms']:.1f}",
            str(dt.timedelta(seconds=round(time.time() - node["started_at"]))),
        )
    return table


COLUMNS = ("node", "model", "layers", "device", "state", "sessions", "tokens/s", "ms/step", "up")
TEXT_COLUMNS = ("node", "model", "device", "state")
COLOURS = {"serving": "green"}


def _show_skips(node: dict[str, Any]) -> None:
    skipped = node.get("platform", {}).get("skipped")
    if not skipped:
        return
    reasons = ", ".join(
        f"{reason.replace('_', ' ')} ({count})"
        for reason, count in sorted(skipped.items(), key=lambda item: -item[1])
    )
    console.print(f"{node['node_id']} was passed over: {reasons}", markup=False)


def _show_earnings(wallet: str, earned: dict[str, Any] | None) -> None:
    if earned is None:
        return
    console.print(
        f"{wallet} earned {earned['total_earned_far_exact']} FAR for "
        f"{earned['total_tokens_served']} tokens; {earned['pending_payout_far_exact']} FAR not yet "
        "on-chain.",
        markup=False,
    )
