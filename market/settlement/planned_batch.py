"""Plans a settlement batch: generations netted by wallet. Pure: nothing is read or written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from market.escrow.settle_call import SettlementBatch
from market.jobs.tables import Job
from market.money import ZERO, to_units
from market.settlement.errors import SettlementMismatch
from market.settlement.tables import Settlement
from market.settlement.usage_lines import Contributions, usage_lines
from market.settlement.usage_tree import UsageLine, UsageTree


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch that is not in the database yet, and what it was made from."""

    jobs: Sequence[Job]
    usage: UsageTree
    fee_recipient: str
    content: SettlementBatch


def plan_batch(
    jobs: Sequence[Job],
    contributions: Contributions,
    *,
    chain_id: int,
    contract: str,
    fee_recipient: str,
) -> PlannedBatch:
    """Net generations into one batch, whose id is the hash of its content.

    Raises:
        SettlementMismatch: a generation's shares and fee do not sum to its cost.
    """
    debits: dict[str, int] = {}
    credits: dict[str, int] = {}
    fees = 0
    for job in jobs:
        cost, fee = to_units(job.total_cost_far or ZERO), to_units(job.fee_far or ZERO)
        debits[job.user_wallet] = debits.get(job.user_wallet, 0) + cost
        fees += fee
        shares = 0
        for contribution in contributions.get(job.id, ()):
            units = to_units(contribution.payment_far)
            shares += units
            if units:
                credits[contribution.wallet_address] = (
                    credits.get(contribution.wallet_address, 0) + units
                )
        if shares + fee != cost:
            raise SettlementMismatch(
                f"Generation {job.request_id} cost {cost} units, but its parts are {shares} and "
                f"its fee is {fee}."
            )
    usage = UsageTree.from_lines(usage_lines(jobs, contributions, fee_recipient))
    content = _content_addressed(chain_id, contract, debits, credits, fees, usage)
    return PlannedBatch(jobs=jobs, usage=usage, fee_recipient=fee_recipient, content=content)


def plan_keepalive_batch(
    last_settled_at: int, *, chain_id: int, contract: str, fee_recipient: str
) -> PlannedBatch:
    """A batch that pays nobody. Its one line names the time, in Unix seconds, at which the batch
    before it was settled, so that no two such batches have the same id."""
    line = UsageLine(last_settled_at.to_bytes(32, "big"), fee_recipient, fee_recipient, 0, 0)
    usage = UsageTree.from_lines([line])
    content = _content_addressed(chain_id, contract, {}, {}, 0, usage)
    return PlannedBatch(jobs=(), usage=usage, fee_recipient=fee_recipient, content=content)


def stored_batch(row: Settlement) -> SettlementBatch:
    """The batch of a row of the database."""
    return SettlementBatch(
        id=row.id,
        debits={wallet: int(units) for wallet, units in row.debits.items()},
        credits={wallet: int(units) for wallet, units in row.credits.items()},
        fee=int(row.fee_units),
        usage_root=row.usage_root or "0x" + bytes(32).hex(),
    )


def _content_addressed(
    chain_id: int,
    contract: str,
    debits: Mapping[str, int],
    credits: Mapping[str, int],
    fee: int,
    usage: UsageTree,
) -> SettlementBatch:
    """A batch whose id is the hash of its content."""
    root = "0x" + usage.root.hex()
    content = {
        "chain": chain_id,
        "contract": contract.lower(),
        "debits": {wallet: str(units) for wallet, units in debits.items()},
        "credits": {wallet: str(units) for wallet, units in credits.items()},
        "fee": str(fee),
        "usageRoot": root,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return SettlementBatch(
        id=f"0x{digest}", debits=debits, credits=credits, fee=fee, usage_root=root
    )


def within_line_limit(
    jobs: Sequence[Job], contributions: Contributions, max_lines: int
) -> list[Job]:
    """The first generations that together have at most ``max_lines`` users and providers; at least
    one generation."""
    users: set[str] = set()
    providers: set[str] = set()
    chosen: list[Job] = []
    for job in jobs:
        users.add(job.user_wallet)
        providers.update(
            contribution.wallet_address for contribution in contributions.get(job.id, ())
        )
        if chosen and len(users) + len(providers) > max_lines:
            break
        chosen.append(job)
    return chosen
