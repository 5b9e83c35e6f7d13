"""A batch of nothing now and then, so that the contract does not go dormant under us.

Where no batch was settled for long, the contract takes the operator for gone and lets everybody
take his money at once. A mesh that had no customers for two weeks is not gone: its next one could
have his answers, and his deposit back before they are settled.
"""

import structlog

from market.settlement.batch_draft import draft_keepalive_batch
from workers.settlement.collect import store_batch
from workers.settlement.run_context import SettlementRun
from workers.settlement.steps import Step, StepResult, step

log = structlog.get_logger()


async def close_keepalive_batch(run: SettlementRun) -> StepResult:
    """Close an empty batch, if half of the time until the contract is dormant has passed.

    Raises:
        ChainUnreachable: the contract cannot be asked.
    """
    with step(Step.CLOSE):
        last, dormancy = await run.escrow.last_settled_at(), await run.escrow.dormancy()
        if await run.network.now() < last + dormancy // 2:
            return StepResult.BLOCKED
        draft = draft_keepalive_batch(
            last,
            chain_id=await run.network.chain_id(),
            contract=run.contract,
            fee_recipient=await run.escrow.fee_recipient(),
        )
        async with run.sessions.begin() as db:
            await store_batch(db, run.contract, draft)
    log.info("settlement_kept_awake", batch=draft.content.id)
    return StepResult.MOVED
