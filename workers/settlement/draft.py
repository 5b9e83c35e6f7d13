"""What a batch is made of. Pure: nothing is read or written."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.chain import Batch
from mesh.db import InferenceSession
from mesh.errors import SettlementMismatch
from mesh.money import ZERO, to_units
from mesh.usage import UsageTree
from mesh.usage_lines import Contributions, usage_lines


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch that is not written yet."""

    jobs: Sequence[InferenceSession]
    usage: UsageTree
    fee_recipient: str
    content: Batch


def make_draft(
    jobs: Sequence[InferenceSession],
    contributions: Contributions,
    *,
    chain_id: int,
    contract: str,
    fee_recipient: str,
) -> Draft:
    """Net generations into one batch, and name it by its content.

    Raises:
        SettlementMismatch: a generation's parts are not its cost. Nothing may be paid on that.
    """
    debits: dict[str, int] = {}
    credits: dict[str, int] = {}
    fees = 0
    for job in jobs:
        cost, fee = to_units(job.total_cost_far or ZERO), to_units(job.fee_far or ZERO)
        debits[job.user_wallet] = debits.get(job.user_wallet, 0) + cost
        fees += fee
        shared = 0
        for part in contributions.get(job.id, ()):
            units = to_units(part.payment_far)
            shared += units
            if units:
                credits[part.wallet_address] = credits.get(part.wallet_address, 0) + units
        if shared + fee != cost:
            raise SettlementMismatch(
                f"Generation {job.request_id} cost {cost} units, but its parts are {shared} and "
                f"its fee is {fee}."
            )
    usage = UsageTree.over(usage_lines(jobs, contributions, fee_recipient))
    root = "0x" + usage.root.hex()
    content = {
        "chain": chain_id,
        "contract": contract.lower(),
        "debits": {wallet: str(units) for wallet, units in debits.items()},
        "credits": {wallet: str(units) for wallet, units in credits.items()},
        "fee": str(fees),
        "usageRoot": root,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    batch = Batch(id=f"0x{digest}", debits=debits, credits=credits, fee=fees, usage_root=root)
    return Draft(jobs=jobs, usage=usage, fee_recipient=fee_recipient, content=batch)


def fitting(
    jobs: Sequence[InferenceSession], contributions: Contributions, max_lines: int
) -> list[InferenceSession]:
    """As many of the first generations as have at most so many users and providers together; one
    in any case."""
    users: set[str] = set()
    providers: set[str] = set()
    chosen: list[InferenceSession] = []
    for job in jobs:
        users.add(job.user_wallet)
        providers.update(part.wallet_address for part in contributions.get(job.id, ()))
        if chosen and len(users) + len(providers) > max_lines:
            break
        chosen.append(job)
    return chosen
