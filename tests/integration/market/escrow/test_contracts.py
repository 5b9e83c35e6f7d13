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
from eth_account.signers.local import LocalAccount
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from eth_typing import ChecksumAddress

with warnings.catch_warnings():  # web3 7 imports a module that websockets has deprecated
    warnings.filterwarnings("ignore", "websockets.legacy is deprecated", DeprecationWarning)
    from web3 import EthereumTesterProvider, Web3

from web3.contract import Contract
from web3.contract.contract import ContractFunction
from web3.logs import DISCARD
from web3.types import TxReceipt

from market.chain.open_web3 import open_web3
from market.escrow.batch_lines import pack_line, pack_lines, unpack_line
from market.escrow.cap_message import cap_message, sign_cap
from market.escrow.deploy import DAY
from stack.dev_chain.accounts import MNEMONIC
from stack.dev_chain_client import development_account

CONTRACTS = Path(__file__).resolve().parents[4] / "contracts"
NAMES = ("FarToken", "InferenceEscrow", "SpecificationEscrow")
FAR = 10**18
BATCH = Web3.keccak(text="batch 1")
REQUEST = Web3.keccak(text="request 1")
ROOT = Web3.keccak(text="usage root")


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

    def raise_cap(self, user: LocalAccount, maximum: int) -> None:
        deadline = self.w3.eth.get_block("latest")["timestamp"] + DAY
        message = cap_message(
            chain_id=self.w3.eth.chain_id,
            escrow=self.escrow.address,
            user=user.address,
            maximum=maximum,
            deadline=deadline,
            nonce=self.escrow.functions.nonces(user.address).call(),
        )
        signature = sign_cap(user, message)
        call = self.escrow.functions.raiseCap(user.address, maximum, deadline, signature)
        self.send(call, self.operator)

    def balance(self, account: ChecksumAddress) -> int:
        balance: int = self.far.functions.balanceOf(account).call()
        return balance


def deploy(w3: Web3, sender: ChecksumAddress, name: str, *arguments: Any) -> Contract:
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
    backend = PyEVMBackend.from_mnemonic(MNEMONIC, num_accounts=10, hd_path="m/44'/60'/0'/0")
    w3 = open_web3(EthereumTesterProvider(EthereumTester(backend)))
    operator, treasury, _, _, gpu1, gpu2, admin, pauser, *_ = list(w3.eth.accounts)
    alice, bob = development_account(2), development_account(3)
    far = deploy(w3, operator, "FarToken", operator)
    terms = (DAY, 14 * DAY, 1000 * FAR)
    roles = (admin, DAY, operator, pauser, treasury)
    escrow = deploy(w3, operator, "InferenceEscrow", far.address, terms, roles)
    chain = Chain(w3, far, escrow, operator, treasury, alice.address, bob.address, gpu1, gpu2)
    for user in (alice, bob):
        chain.send(far.functions.transfer(user.address, 1000 * FAR), operator)
        chain.send(far.functions.approve(escrow.address, 1000 * FAR), user.address)
        chain.raise_cap(user, 100 * FAR)
    return chain


def test_deposit_settle_claim(chain: Chain) -> None:
    escrow = chain.escrow
    chain.send(escrow.functions.deposit(100 * FAR), chain.alice)
    chain.send(escrow.functions.depositFor(chain.bob, 50 * FAR), chain.alice)
    assert chain.balance(chain.alice) == 850 * FAR

    debits = {chain.alice: 30 * FAR, chain.bob: 10 * FAR}
    credits = {chain.gpu1: 25 * FAR, chain.gpu2: 11 * FAR}
    receipt = chain.send(
        escrow.functions.settle(BATCH, pack_lines(debits), pack_lines(credits), 4 * FAR, ROOT),
        chain.operator,
    )

    [lines] = escrow.events.BatchLines().process_receipt(receipt, errors=DISCARD)
    assert dict(map(unpack_line, lines["args"]["debits"])) == debits
    assert dict(map(unpack_line, lines["args"]["credits"])) == credits
    [settled] = escrow.events.BatchSettled().process_receipt(receipt, errors=DISCARD)
    assert settled["args"] == {
        "batchId": BATCH,
        "usageRoot": ROOT,
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
    settle = escrow.functions.settle(
        BATCH, [pack_line(chain.alice, FAR)], [pack_line(chain.gpu1, FAR)], 0, ROOT
    )
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
    assert recorded >= {path.relative_to(CONTRACTS).as_posix() for path in sources}


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


@pytest.mark.slow
def test_artifacts_are_what_the_sources_compile_to(toolchain: Path) -> None:
    shutil.rmtree(toolchain / "artifacts")
    npm(toolchain, "run", "build")
    for name in NAMES:
        assert artifact(name, toolchain) == artifact(name)


@pytest.mark.slow
def test_solidity_tests_pass(toolchain: Path) -> None:
    npm(toolchain, "test")
