"""The contracts as others meet them: the committed artifacts, on a chain, and that they are
what the sources compile to."""

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_tester.exceptions import TransactionFailed
from eth_typing import ChecksumAddress

with warnings.catch_warnings():  # web3 7 imports a module that websockets has deprecated
    warnings.filterwarnings("ignore", "websockets.legacy is deprecated", DeprecationWarning)
    from web3 import EthereumTesterProvider, Web3

from web3.contract import Contract
from web3.contract.contract import ContractFunction
from web3.logs import DISCARD
from web3.types import TxReceipt

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
NAMES = ("FarToken", "InferenceEscrow")
FAR = 10**18
BATCH = Web3.keccak(text="batch 1")
REQUEST = Web3.keccak(text="request 1")


def artifact(name: str, folder: Path = CONTRACTS) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "artifacts" / f"{name}.json").read_text())
    return content


# ------------------------------------------------------------------ on a chain


@dataclass(frozen=True)
class Chain:
    """A fresh chain with both contracts, and the accounts that take part."""

    w3: Web3
    far: Contract
    escrow: Contract
    operator: ChecksumAddress
    treasury: ChecksumAddress
    alice: ChecksumAddress
    bob: ChecksumAddress
    gpu1: ChecksumAddress
    gpu2: ChecksumAddress

    def send(self, call: ContractFunction, sender: ChecksumAddress) -> TxReceipt:
        receipt = self.w3.eth.wait_for_transaction_receipt(call.transact({"from": sender}))
        assert receipt["status"] == 1
        return receipt

    def balance(self, account: ChecksumAddress) -> int:
        balance: int = self.far.functions.balanceOf(account).call()
        return balance


def deploy(w3: Web3, sender: ChecksumAddress, name: str, *arguments: ChecksumAddress) -> Contract:
    built = artifact(name)
    factory = w3.eth.contract(abi=built["abi"], bytecode=built["bytecode"])
    receipt = w3.eth.wait_for_transaction_receipt(
        factory.constructor(*arguments).transact({"from": sender})
    )
    address = receipt["contractAddress"]
    assert address is not None
    return w3.eth.contract(address=address, abi=built["abi"])


@pytest.fixture
def chain() -> Chain:
    w3 = Web3(EthereumTesterProvider())
    operator, treasury, alice, bob, gpu1, gpu2, *_ = list(w3.eth.accounts)
    far = deploy(w3, operator, "FarToken", operator)
    escrow = deploy(w3, operator, "InferenceEscrow", far.address, operator, treasury)
    chain = Chain(w3, far, escrow, operator, treasury, alice, bob, gpu1, gpu2)
    for user in (alice, bob):
        chain.send(far.functions.transfer(user, 1000 * FAR), operator)
        chain.send(far.functions.approve(escrow.address, 1000 * FAR), user)
    return chain


def test_deposit_settle_claim(chain: Chain) -> None:
    escrow = chain.escrow
    chain.send(escrow.functions.deposit(100 * FAR), chain.alice)
    chain.send(escrow.functions.depositFor(chain.bob, 50 * FAR), chain.alice)
    assert chain.balance(chain.alice) == 850 * FAR

    debits = [(chain.alice, 30 * FAR), (chain.bob, 10 * FAR)]
    credits = [(chain.gpu1, 25 * FAR), (chain.gpu2, 11 * FAR)]
    receipt = chain.send(escrow.functions.settle(BATCH, debits, credits, 4 * FAR), chain.operator)

    [settled] = escrow.events.BatchSettled().process_receipt(receipt, errors=DISCARD)
    assert settled["args"] == {
        "batchId": BATCH,
        "debited": 40 * FAR,
        "credited": 36 * FAR,
        "fee": 4 * FAR,
    }
    assert escrow.functions.batchSettled(BATCH).call()
    assert escrow.functions.depositOf(chain.alice).call() == 70 * FAR
    assert escrow.functions.depositOf(chain.bob).call() == 40 * FAR

    earned = {chain.gpu1: 25 * FAR, chain.gpu2: 11 * FAR, chain.treasury: 4 * FAR}
    for account, amount in earned.items():
        assert escrow.functions.creditOf(account).call() == amount
        chain.send(escrow.functions.claim(), account)
        assert chain.balance(account) == amount
        assert escrow.functions.creditOf(account).call() == 0
        assert escrow.functions.earnedOf(account).call() == amount
    assert chain.balance(escrow.address) == 110 * FAR


def test_batch_is_refused_twice(chain: Chain) -> None:
    escrow = chain.escrow
    chain.send(escrow.functions.deposit(100 * FAR), chain.alice)
    settle = escrow.functions.settle(BATCH, [(chain.alice, FAR)], [(chain.gpu1, FAR)], 0)
    chain.send(settle, chain.operator)

    expected = revert_data("InferenceEscrow_BatchAlreadySettled(bytes32)", BATCH)
    with pytest.raises(TransactionFailed, match=re.escape(str(expected))):
        chain.send(settle, chain.operator)
    assert escrow.functions.creditOf(chain.gpu1).call() == FAR


def test_release_batch_skips_what_is_not_open(chain: Chain) -> None:
    escrow = chain.escrow
    chain.send(escrow.functions.createEscrow(REQUEST, 10 * FAR), chain.alice)
    missing = escrow.functions.escrowIdOf(chain.bob, REQUEST).call()

    items = [
        (chain.bob, REQUEST, [chain.gpu1], [FAR]),
        (chain.alice, REQUEST, [chain.gpu1, chain.gpu2], [6 * FAR, 3 * FAR]),
    ]
    receipt = chain.send(escrow.functions.releaseBatch(items), chain.operator)

    [skipped] = escrow.events.ReleaseSkipped().process_receipt(receipt, errors=DISCARD)
    reason = revert_data("InferenceEscrow_EscrowNotOpen(bytes32,uint8)", missing, bytes(32))
    assert skipped["args"] == {"escrowId": missing, "reason": reason}
    for account, amount in ((chain.gpu1, 6), (chain.gpu2, 3), (chain.alice, 1)):
        assert escrow.functions.creditOf(account).call() == amount * FAR


def test_gas_of_settling_ten_debits_and_ten_credits(chain: Chain) -> None:
    """The figures in contracts/README.md, each with a little room for another compiler."""
    escrow = chain.escrow
    users = [chain.w3.to_checksum_address(f"0x{0x1000 + i:040x}") for i in range(10)]
    providers = [chain.w3.to_checksum_address(f"0x{0x2000 + i:040x}") for i in range(10)]
    for user in users:
        chain.send(escrow.functions.depositFor(user, 5 * FAR), chain.alice)

    debits = [(user, FAR) for user in users]
    credits = [(provider, FAR * 9 // 10) for provider in providers]
    first, later = (
        chain.send(escrow.functions.settle(batch_id, debits, credits, FAR), chain.operator)
        for batch_id in (bytes([1]) * 32, bytes([2]) * 32)
    )
    assert first["gasUsed"] < 690_000
    assert later["gasUsed"] < 290_000


def revert_data(error: str, *words: bytes) -> bytes:
    """What a call answers that reverts with this error and these 32-byte arguments."""
    return bytes(Web3.keccak(text=error)[:4]) + b"".join(words)


# ------------------------------------------------- artifacts against their sources


@pytest.mark.parametrize("name", NAMES)
def test_artifact_is_of_these_sources(name: str) -> None:
    recorded = artifact(name)["builtFrom"]["sourcesSha256"]
    actual = {
        path: hashlib.sha256((CONTRACTS / path).read_bytes()).hexdigest() for path in recorded
    }
    assert recorded == actual, "run `npm ci && npm run build` in contracts/"


def test_every_source_is_in_an_artifact() -> None:
    recorded = {path for name in NAMES for path in artifact(name)["builtFrom"]["sourcesSha256"]}
    sources = (CONTRACTS / "src").rglob("*.sol")
    assert recorded == {path.relative_to(CONTRACTS).as_posix() for path in sources}


@pytest.mark.parametrize("name", NAMES)
def test_artifact_is_of_these_settings(name: str) -> None:
    built_from = artifact(name)["builtFrom"]
    profile = tomllib.loads((CONTRACTS / "foundry.toml").read_text())["profile"]["default"]
    assert built_from["settings"] == {key: profile[key] for key in built_from["settings"]}

    locked = json.loads((CONTRACTS / "package-lock.json").read_text())["packages"]
    for package, version in built_from["packages"].items():
        assert locked[f"node_modules/{package}"]["version"] == version


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of contracts/ with its packages installed afresh from the lock file."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: the contracts cannot be compiled here")
    folder = tmp_path_factory.mktemp("toolchain") / "contracts"
    left_out = shutil.ignore_patterns("node_modules", "out", "cache")
    shutil.copytree(CONTRACTS, folder, ignore=left_out)
    npm(folder, "ci", "--prefer-offline", "--no-audit", "--no-fund")
    return folder


def npm(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["npm", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"npm {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"


def test_artifacts_are_what_the_sources_compile_to(toolchain: Path) -> None:
    shutil.rmtree(toolchain / "artifacts")
    npm(toolchain, "run", "build")
    for name in NAMES:
        assert artifact(name, toolchain) == artifact(name)


def test_solidity_tests_pass(toolchain: Path) -> None:
    npm(toolchain, "test")
