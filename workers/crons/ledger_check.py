"""The ledger's integrity, checked now and then; what is wrong is logged and counted."""

from typing import Any

import structlog

from market.chain.errors import ChainError
from market.escrow.escrow_view import EscrowView
from market.ledger.integrity_check import check, publish
from market.resources import Services

log = structlog.get_logger()


async def check_ledger(ctx: dict[str, Any]) -> None:
    """arq cron: check the ledger's invariants, and the ledger against the contract, if any."""
    services: Services = ctx["services"]
    try:
        async with EscrowView.of(services.settings.payments) as contract:
            report = await check(services.sessions, contract)
    except ChainError as error:  # the ledger can be checked by itself
        log.error("ledger_not_compared", reason=str(error))
        report = await check(services.sessions)
    publish(report)
