"""`far-mesh contracts`: the contracts on a real chain."""

import getpass
import os
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from web3 import Web3
from web3.exceptions import Web3Exception
from web3.middleware import ExtraDataToPOAMiddleware

from cli.console import console, fail
from market.chain.keystore_signer import unlock_keystore
from market.escrow.deploy import DAY, Roles, Terms
from market.escrow.deploy import deploy as deploy_contracts
from market.money import to_units
from mesh.errors import MeshError

app = typer.Typer(help="The contracts on a chain.", no_args_is_help=True)

DEFAULTS = Terms()


@app.callback()
def _commands() -> None:
    """Without this, typer would make the only command the group itself."""


@app.command()
def deploy(
    rpc: Annotated[str, typer.Option(help="URL of the chain's JSON-RPC.")],
    keyfile: Annotated[
        Path,
        typer.Option(help="Encrypted keystore of the account that pays; DEPLOYER_PASSWORD, or ask"),
    ],
    admin: Annotated[str, typer.Option(help="Appoints settlers and pausers: a multisig.")],
    settler: Annotated[str, typer.Option(help="Settles: the operator's account.")],
    pauser: Annotated[str, typer.Option(help="May pause.")],
    fee_recipient: Annotated[str, typer.Option(help="Is credited with the fees.")],
    token: Annotated[
        str | None, typer.Option(help="An ERC-20 that is there, instead of a new FarToken.")
    ] = None,
    withdrawal_delay: Annotated[
        int, typer.Option(help="Seconds; has to be above the release delay.")
    ] = DEFAULTS.withdrawal_delay,
    dormancy: Annotated[
        int, typer.Option(help="Seconds without a batch until delays are waived.")
    ] = DEFAULTS.dormancy,
    daily_ceiling: Annotated[str, typer.Option(help="FAR that all debits of a day may be.")] = (
        "1000000"
    ),
    admin_delay: Annotated[int, typer.Option(help="Seconds until a new admin may take over.")] = (
        2 * DAY
    ),
    out: Annotated[Path, typer.Option(help="File that gets the addresses.")] = Path(
        "contracts.json"
    ),
) -> None:
    """Create FarToken and InferenceEscrow, and write where they are."""
    password = os.environ.get("DEPLOYER_PASSWORD") or getpass.getpass("Keystore password: ")
    web3 = Web3(Web3.HTTPProvider(rpc))
    # BSC's validators sign in `extraData`, which is then longer than Ethereum's.
    web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    try:
        deployed = deploy_contracts(
            web3,
            unlock_keystore(keyfile, password),
            terms=Terms(withdrawal_delay, dormancy, to_units(Decimal(daily_ceiling))),
            roles=Roles(admin, settler, pauser, fee_recipient, admin_delay),
            token=token,
        )
    except (MeshError, RuntimeError, ValueError, InvalidOperation, OSError, Web3Exception) as error:
        fail(error)
    deployed.write(out)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("chain", str(deployed.chain_id))
    table.add_row("FarToken", deployed.token)
    table.add_row("InferenceEscrow", f"{deployed.escrow} from block {deployed.block} on")
    table.add_row("written to", str(out))
    console.print(table)
