"""Deploying on a chain as operators do, and what is written about it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner
from web3 import HTTPProvider, Web3
from web3.middleware import ExtraDataToPOAMiddleware

from cli.app import app
from market.escrow.artifacts import artifact
from market.escrow.deploy import DAY
from market.settings.deployment import Deployment
from market.settings.payments import PaymentsSettings
from stack.dev_chain_client import development_account, write_keystore

ADMIN, SETTLER, PAUSER, TREASURY = (development_account(index).address for index in (2, 3, 4, 5))


def deploy(chain_url: str, folder: Path, **options: str) -> tuple[int, str]:
    """Run the command; returns its exit code and output."""
    keyfile = folder / "deployer.json"
    write_keystore(development_account(1), keyfile, "a password")
    values = {"rpc": chain_url, "keyfile": str(keyfile), "out": str(folder / "contracts.json")}
    values |= {"admin": ADMIN, "settler": SETTLER, "pauser": PAUSER, "fee-recipient": TREASURY}
    arguments = [
        part for name, value in (values | options).items() for part in (f"--{name}", value)
    ]
    done = CliRunner().invoke(
        app, ["contracts", "deploy", *arguments], env={"DEPLOYER_PASSWORD": "a password"}
    )
    return done.exit_code, done.output


def test_command_deploys_what_was_asked_for(chain_url: str, tmp_path: Path) -> None:
    code, output = deploy(
        chain_url, tmp_path, **{"daily-ceiling": "12.5", "dormancy": str(7 * DAY)}
    )
    assert code == 0, output

    written = Deployment.read(tmp_path / "contracts.json")
    web3 = Web3(HTTPProvider(chain_url))
    web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    assert written.chain_id == web3.eth.chain_id
    assert web3.eth.get_block(written.block)["number"] == written.block
    escrow = web3.eth.contract(
        address=Web3.to_checksum_address(written.escrow), abi=artifact("InferenceEscrow")["abi"]
    ).functions
    assert escrow.token().call() == written.token
    assert escrow.WITHDRAWAL_DELAY().call() == DAY
    assert escrow.DORMANCY().call() == 7 * DAY
    assert escrow.dailyCeiling().call() == 125 * 10**17
    assert escrow.defaultAdmin().call() == ADMIN
    assert escrow.defaultAdminDelay().call() == 2 * DAY
    assert escrow.hasRole(escrow.SETTLER_ROLE().call(), SETTLER).call()
    assert escrow.hasRole(escrow.PAUSER_ROLE().call(), PAUSER).call()
    assert escrow.feeRecipient().call() == TREASURY

    code, output = deploy(chain_url, tmp_path, token=written.token)
    assert code == 0, output
    again = Deployment.read(tmp_path / "contracts.json")
    assert (again.token, again.escrow != written.escrow) == (written.token, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pauser": SETTLER.lower()}, "three accounts"),
        ({"daily-ceiling": "much"}, "far-mesh:"),
        ({"keyfile": "/nowhere.json"}, "Cannot unlock"),
        ({"admin": "nobody"}, "far-mesh:"),
        ({"withdrawal-delay": "0"}, "far-mesh:"),
    ],
)
def test_command_says_what_is_wrong(
    chain_url: str, tmp_path: Path, options: dict[str, str], said: str
) -> None:
    code, output = deploy(chain_url, tmp_path, **options)
    assert code == 1
    assert said in output
    assert not (tmp_path / "contracts.json").exists()


def test_settings_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "contracts.json"
    Deployment(token=ADMIN, escrow=SETTLER, chain_id=56, block=7).write(path)
    abi = json.loads(path.read_text())["abi"]
    assert all((artifact(name.removesuffix(".json"))["abi"]) for name in abi.values())

    payments = PaymentsSettings(deployment=path)
    assert (payments.escrow_contract, payments.chain_id, payments.first_block) == (SETTLER, 56, 7)
    payments = PaymentsSettings(deployment=path, first_block=9)
    assert (payments.escrow_contract, payments.chain_id, payments.first_block) == (SETTLER, 56, 9)


@pytest.mark.parametrize("content", ["{", "[]", '{"token": "0x"}', None])
def test_settings_refuse_another_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "contracts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValidationError, match="no deployment file"):
        PaymentsSettings(deployment=path)
