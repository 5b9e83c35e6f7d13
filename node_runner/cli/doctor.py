"""`far-node doctor`: what would keep this machine from earning, and what it could earn."""

import json
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mesh.errors import MeshError
from node_runner.cli import credentials, options
from node_runner.cli.console import console, errors, fail
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.http import client

SECONDS_PER_MODEL = 3.0
"""Time in which each model is measured."""

MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}


def doctor(
    discovery: options.Discovery = None,
    device: options.Device = None,
    gpu: options.Gpu = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = 1,
    cache: options.Cache = options.CACHE,
    quick: Annotated[bool, typer.Option("--quick", help="Measure no model's speed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Check GPU, disk, torch, clock and line, and say what this machine could serve and earn.

    Ends with status 1 if something would keep a node from serving.
    """
    import torch  # takes seconds, which `far-node --help` should not

    from node_runner.diagnostics import doctor_checks, earnings_estimate
    from node_runner.machine import devices

    torch.set_num_threads(threads)
    login = credentials.saved_login()
    url = credentials.platform_of(discovery, login)
    checks = list(doctor_checks.machine(Path(cache)))
    checks.append(doctor_checks.login(login))
    estimates: list[earnings_estimate.EarningsEstimate] = []
    if url is None:
        checks.append(doctor_checks.NO_PLATFORM)
    else:
        try:
            chosen = devices.pick_device(
                next(iter(device or [f"cuda:{each}" for each in gpu or []]), "auto")
            )
            number = devices.pick_dtype(dtype, chosen)
            with client(url) as http:
                checks += doctor_checks.network(http)
                if all(check.state != "fail" for check in checks if check.name == "platform"):
                    with errors.status("Measuring what this device could serve"):
                        estimates = list(
                            earnings_estimate.estimates(
                                http, chosen, number, seconds=0 if quick else SECONDS_PER_MODEL
                            )
                        )
        except (ValueError, PlatformError, MeshError) as error:
            raise fail(str(error)) from None
    healthy = all(check.state != "fail" for check in checks)
    if as_json:
        shown = {
            "healthy": healthy,
            "checks": [asdict(check) for check in checks],
            "models": [_plain(estimate) for estimate in estimates],
        }
        console.print_json(json.dumps(shown))
    else:
        _show(checks, estimates)
    raise typer.Exit(0 if healthy else 1)


def _plain(estimate: Any) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Decimal) else value
        for name, value in asdict(estimate).items()
    }


def _show(checks: list[Any], estimates: list[Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        hint = f"\n[dim]{escape(check.hint)}[/]" if check.hint else ""
        table.add_row(MARKS[check.state], check.name, escape(check.found) + hint)
    console.print(table)
    if not estimates:
        return
    console.print()
    models = Table(box=None, pad_edge=False)
    models.add_column("model")
    for heading in ("layers", "fit in 16 bits", "int8", "nf4", "layers/s", "FAR an hour, at most"):
        models.add_column(heading, justify="right")
    for estimate in estimates:
        fits = [str(estimate.fits.get(each, "-")) for each in ("none", "int8", "nf4")]
        models.add_row(
            escape(estimate.model_id),
            str(estimate.layers),
            *fits,
            "-" if estimate.decode is None else f"{estimate.decode:,.0f}",
            "-" if estimate.per_hour is None else f"{estimate.per_hour:.4f}",
        )
    console.print(models)
    console.print(
        "[dim]Layers beside KV for 16,384 positions. FAR an hour: if this device decodes one "
        "generation after another without a pause, at the price now, before the platform's fee; "
        "measured with random weights, not quantized. Several generations at once earn more, and "
        "waiting for work nothing.[/]"
    )
