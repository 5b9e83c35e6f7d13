"""Gas of settling, compared with the specification's escrow: `python -m benchmarks.gas --help`.

Runs in memory on py-evm, or on a development chain whose accounts are unlocked, such as anvil's,
which is quicker. Gas is counted, not timed: the figures are the same on every machine.

    anvil --port 8546 --silent & python -m benchmarks.gas --rpc http://127.0.0.1:8546
"""

import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from eth_account import Account
from rich.table import Table

with warnings.catch_warnings():  # web3 7 imports a module that websockets has deprecated
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from web3 import EthereumTesterProvider, Web3

from benchmarks.common.output import console, write_results
from market.chain.open_web3 import open_web3
from market.escrow.artifacts import artifact
from market.escrow.batch_lines import pack_lines
from market.escrow.cap_message import cap_message, sign_cap
from market.escrow.deploy import DAY, Terms

REQUESTS = (10, 100, 1_000, 10_000)
USERS = (10, 100, 500)
PROVIDERS = (10, 100, 200)
GOAL = (10_000, 500, 100)
"""Requests, users and providers for which the goal of 400 gas a request is set."""

HOPS = 3
"""Providers that share one request's pay."""

FAR = 10**18
TOKENS = (16, 1024)
PRICE = FAR // 10_000
"""What one generated token costs. The more digits amounts have, the more their bytes cost."""

FEE_PERCENT = 5
BATCH_OF_RELEASES = 50
TRIES = 5
GAS_LIMIT = 16_000_000
"""Below the chain's block limit; given so that nothing is estimated."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to pay for ``requests`` requests, in gas."""

    way: str
    requests: int
    users: int
    providers: int
    gas: int

    @property
    def each(self) -> float:
        return self.gas / self.requests


class Bench:
    """A new chain with the token, both escrow contracts, users and an operator."""

    def __init__(self, users: int, rpc: str | None) -> None:
        self.web3 = open_web3(rpc or EthereumTesterProvider())
        self.operator, self.admin, self.pauser, self.payer = self.web3.eth.accounts[:4]
        self._ids = self._strangers = 0
        self.token = self._create("FarToken", self.payer)
        terms = Terms()
        self.escrow = self._create(
            "InferenceEscrow",
            self.token.address,
            (terms.withdrawal_delay, terms.dormancy, terms.daily_ceiling),
            (self.admin, DAY, self.operator, self.pauser, self.operator),
        )
        self.specified = self._create("SpecificationEscrow", self.token.address)
        for escrow in (self.escrow, self.specified):
            self.gas(self.token.functions.approve(escrow.address, 2**255), self.payer)
        self.users = [self._user(index) for index in range(users)]

    def gas(self, call: Any, sender: Any) -> int:
        """Gas that a transaction used.

        Raises:
            RuntimeError: it was reverted.
        """
        sent = call.transact({"from": sender, "gas": GAS_LIMIT})
        receipt = self.web3.eth.wait_for_transaction_receipt(sent, poll_latency=0.01)
        if receipt["status"] != 1:
            raise RuntimeError(f"{call.fn_name} was reverted.")
        return int(receipt["gasUsed"])

    def new_id(self) -> bytes:
        """An id for a batch or a request."""
        self._ids += 1
        return bytes(Web3.keccak(text=f"id {self._ids}"))

    def strangers(self, count: int) -> list[str]:
        """Addresses that the chain has never seen."""
        self._strangers += count
        return [
            Web3.to_checksum_address(Web3.keccak(text=f"provider {index}")[-20:])
            for index in range(self._strangers - count, self._strangers)
        ]

    def _create(self, name: str, *arguments: Any) -> Any:
        compiled = artifact(name)
        factory = self.web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
        sent = factory.constructor(*arguments).transact({"from": self.operator, "gas": GAS_LIMIT})
        receipt = self.web3.eth.wait_for_transaction_receipt(sent, poll_latency=0.01)
        return self.web3.eth.contract(address=receipt["contractAddress"], abi=compiled["abi"])

    def _user(self, index: int) -> str:
        """A user with a deposit and a cap, as all have when their first request is settled."""
        account = Account.from_key(Web3.keccak(text=f"user {index}"))
        self.gas(self.escrow.functions.depositFor(account.address, 1000 * FAR), self.payer)
        deadline = self.web3.eth.get_block("latest")["timestamp"] + DAY
        message = cap_message(
            chain_id=self.web3.eth.chain_id,
            escrow=self.escrow.address,
            user=account.address,
            maximum=1000 * FAR,
            deadline=deadline,
            nonce=0,
        )
        signature = sign_cap(account, message)
        self.gas(
            self.escrow.functions.raiseCap(account.address, 1000 * FAR, deadline, signature),
            self.payer,
        )
        return str(account.address)


def settled(bench: Bench, way: str, requests: int, users: int, providers: Sequence[str]) -> Row:
    """One batch of random requests in which every user and provider has a part."""
    chance = random.Random(way)
    debits: Counter[str] = Counter()
    credits: Counter[str] = Counter()
    fee = 0
    for index in range(requests):
        cost = chance.randint(*TOKENS) * PRICE
        debits[bench.users[index % users]] += cost
        fees = cost * FEE_PERCENT // 100
        fee += fees
        for hop, share in enumerate(shares(cost - fees)):
            credits[providers[(HOPS * index + hop) % len(providers)]] += share
    gas = bench.gas(
        bench.escrow.functions.settle(
            bench.new_id(),
            pack_lines(debits),
            pack_lines(credits),
            fee,
            chance.randbytes(32),
        ),
        bench.operator,
    )
    return Row(way, requests, len(debits), len(credits), gas)


def shares(pay: int) -> list[int]:
    """Parts of a pay in the ratio of 8 to 7 to 7 layers, so that they are no round numbers."""
    first, second = pay * 8 // 22, pay * 7 // 22
    return [first, second, pay - first - second]


def specified(bench: Bench) -> Row:
    """The specification's create and release for one request, once all accounts are known."""
    providers = bench.strangers(HOPS)
    gas = 0
    for number in range(1 + TRIES):
        request = bench.new_id()
        contract = bench.specified.functions
        used = bench.gas(contract.createEscrow(request, FAR), bench.payer)
        amounts = shares(FAR * 9 // 10)
        used += bench.gas(contract.releaseMultiple(request, providers, amounts), bench.operator)
        gas += used if number else 0  # the first meets accounts that hold nothing yet
    return Row("specified: create + release", TRIES, 1, HOPS, gas)


def released(bench: Bench) -> Row:
    """Our createEscrow for each request, and one releaseBatch for them all."""
    providers = bench.strangers(HOPS)
    gas = 0
    for _ in range(2):  # the first meets accounts that hold nothing yet
        gas, items = 0, []
        for _ in range(BATCH_OF_RELEASES):
            request = bench.new_id()
            gas += bench.gas(bench.escrow.functions.createEscrow(request, FAR), bench.payer)
            items.append((bench.payer, request, providers, shares(FAR * 9 // 10)))
        gas += bench.gas(bench.escrow.functions.releaseBatch(items), bench.operator)
    return Row("create + releaseBatch", BATCH_OF_RELEASES, 1, HOPS, gas)


def combinations(goal_only: bool) -> list[tuple[int, int, int]]:
    """Requests, users and providers, where there are enough requests for all to have a part."""
    if goal_only:
        return [GOAL]
    return [
        (requests, users, providers)
        for requests in REQUESTS
        for users in USERS
        for providers in PROVIDERS
        if users <= requests and providers <= HOPS * requests
    ]


def table(rows: Sequence[Row], naive: Row, dollars_per_gas: float) -> Table:
    """The rows, each request's gas in ratio to the specification's way."""
    shown = Table("way", title="Gas of paying for requests")
    for heading in ("requests", "users", "providers", "gas", "a request", "$ a request", "less"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            row.way,
            f"{row.requests:,}",
            str(row.users),
            str(row.providers),
            f"{row.gas:,}",
            f"{row.each:,.0f}",
            f"{row.each * dollars_per_gas:.7f}",
            f"{naive.each / row.each:,.1f} x",
        )
    return shown


def main(
    gas_price: Annotated[float, typer.Option(help="Gwei for one gas.")] = 0.1,
    bnb: Annotated[float, typer.Option(help="US dollars for one BNB.")] = 600.0,
    rpc: Annotated[
        str | None, typer.Option(help="URL of a development chain's JSON-RPC, instead of py-evm.")
    ] = None,
    goal_only: Annotated[
        bool, typer.Option(help="Of the batches, only 10,000 requests, 500 users, 100 providers.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures there.")] = None,
) -> None:
    """Gas and dollars a request: the specification's way, releaseBatch, and settle."""
    began = time.monotonic()
    with console.status("Making users") as status:
        bench = Bench(max(USERS), rpc)
        status.update("Releasing request by request")
        naive = specified(bench)
        rows = [naive, released(bench)]
        for requests, users, providers in combinations(goal_only):
            status.update(f"Settling {requests:,} requests among {users} and {providers}")
            accounts = bench.strangers(providers)
            rows += [
                settled(bench, way, requests, users, accounts)
                for way in ("settle, providers new", "settle, all known")
            ]
    console.print(table(rows, naive, dollars_per_gas=gas_price * 1e-9 * bnb))
    console.print(
        f"Dollars at {gas_price:g} gwei a gas and {bnb:g} dollars a BNB. All gas of the "
        "transactions, base and calldata included; deposits, caps, approvals and claims left out."
    )
    write_results(
        {"gas_price_gwei": gas_price, "bnb_dollars": bnb, "rows": [asdict(row) for row in rows]},
        other_cpu=(),
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
