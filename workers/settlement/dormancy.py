"""Keep-alive batches: an empty batch now and then, so that the contract does not go dormant.

Where no batch was settled for long, the contract takes the operator for gone and waives the delay
of withdrawals. A platform that had no customers for two weeks is not gone: its next customer could
withdraw his deposit before his generations are settled.
"""

import structlog

from market.settlement.planned_batch import plan_keepalive_batch
from workers.settlement.collect import store_batch
from workers.settlement.phases import PhaseResult, SettlementPhase, phase
from workers.settlement.run_context import SettlementRun

log = structlog.get_logger()


async def close_keepalive_batch(run: SettlementRun) -> PhaseResult:
    """Close a keep-alive batch, if half of the time until the contract is dormant has passed.

    Raises:
        ChainUnreachable: the contract cannot be asked.
    """
    with phase(SettlementPhase.CLOSE):
        last_settled_at = await run.escrow.last_settled_at()
        dormancy = await run.escrow.dormancy()
        if await run.chain.latest_timestamp() < last_settled_at + dormancy // 2:
            return PhaseResult.STOPPED
        planned = plan_keepalive_batch(
            last_settled_at,
            chain_id=await run.chain.chain_id(),
            contract=run.contract,
            fee_recipient=await run.escrow.fee_recipient(),
        )
        async with run.sessions.begin() as db:
            await store_batch(db, run.contract, planned)
    log.info("settlement_keepalive_closed", batch=planned.content.id)
    return PhaseResult.ADVANCED
