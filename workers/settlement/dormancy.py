"""Keep-alive batches: an empty batch now and then, so that the contract does not go dormant.

Where no batch was settled for long, the contract takes the operator for gone and waives the delay
of withdrawals. A platform that had no customers for two weeks is not gone: its next customer could
withdraw his deposit before his generations are settled.
"""

import structlog

from market.settlement.batch_draft import draft_keepalive_batch
from workers.settlement.collect import store_batch
from workers.settlement.run_context import SettlementRun
from workers.settlement.steps import Step, StepResult, step

log = structlog.get_logger()


async def close_keepalive_batch(run: SettlementRun) -> StepResult:
    """Close a keep-alive batch, if half of the time until the contract is dormant has passed.

    Raises:
        ChainUnreachable: the contract cannot be asked.
    """
    with step(Step.CLOSE):
        last_settled_at = await run.escrow.last_settled_at()
        dormancy = await run.escrow.dormancy()
        if await run.chain.latest_timestamp() < last_settled_at + dormancy // 2:
            return StepResult.STOPPED
        draft = draft_keepalive_batch(
            last_settled_at,
            chain_id=await run.chain.chain_id(),
            contract=run.contract,
            fee_recipient=await run.escrow.fee_recipient(),
        )
        async with run.sessions.begin() as db:
            await store_batch(db, run.contract, draft)
    log.info("settlement_keepalive_closed", batch=draft.content.id)
    return StepResult.ADVANCED
