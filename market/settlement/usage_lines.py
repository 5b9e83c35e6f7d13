"""The lines of a batch's usage tree, from the generations that are in it."""

import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, to_units
from market.settlement.errors import UsageUnproven
from market.settlement.tables import Settlement, StoredUsageTree
from market.settlement.usage_tree import UsageLine, UsageTree, request_id_of

Contributions = Mapping[uuid.UUID, Sequence[NodeContribution]]
"""By generation, in the order in which they were written."""


def usage_lines(
    jobs: Sequence[Job], contributions: Contributions, fee_recipient: str
) -> list[UsageLine]:
    """One line for each contribution, and one for each generation's fee."""
    lines = []
    for job in jobs:
        request = request_id_of(job.id)
        for contribution in contributions.get(job.id, ()):
            units = to_units(contribution.payment_far)
            tokens = contribution.tokens_contributed
            lines.append(
                UsageLine(request, job.user_wallet, contribution.wallet_address, tokens, units)
            )
        fee = to_units(job.fee_far or ZERO)
        lines.append(UsageLine(request, job.user_wallet, fee_recipient, 0, fee))
    return lines


async def contributions_of(db: AsyncSession, jobs: Sequence[Job]) -> Contributions:
    """Who served which part of these generations."""
    found: dict[uuid.UUID, list[NodeContribution]] = {}
    rows = await db.scalars(
        select(NodeContribution)
        .where(NodeContribution.session_id.in_([job.id for job in jobs]))
        .order_by(NodeContribution.id)
    )
    for contribution in rows:
        found.setdefault(contribution.session_id, []).append(contribution)
    return found


async def tree_of(db: AsyncSession, batch: Settlement) -> UsageTree:
    """The tree that was stored when the batch was closed.

    Raises:
        UsageUnproven: there is none, or its root is not the batch's.
    """
    nodes = await db.scalar(
        select(StoredUsageTree.nodes).where(StoredUsageTree.settlement_id == batch.id)
    )
    if not nodes or "0x" + (tree := UsageTree(nodes)).root.hex() != batch.usage_root:
        raise UsageUnproven(f"The tree of batch {batch.id} is not the one that was settled.")
    return tree
