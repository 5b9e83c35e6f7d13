"""Checks the books now and then, and says loudly what is wrong."""

from typing import Any

import structlog

from market.chain.errors import ChainError
from market.escrow.escrow_view import EscrowView
from market.ledger.integrity_check import check_integrity, publish
from market.resources import Services

log = structlog.get_logger()


async def check_ledger(ctx: dict[str, Any]) -> None:
    """arq cron: check every rule of the ledger, and that against the contract, if there is one."""
    services: Services = ctx["services"]
    try:
        async with EscrowView.of(services.settings.payments) as contract:
            report = await check_integrity(services.sessions, contract)
    except ChainError as error:  # the books can be checked alone
        log.error("ledger_not_compared", reason=str(error))
        report = await check_integrity(services.sessions)
    publish(report)
