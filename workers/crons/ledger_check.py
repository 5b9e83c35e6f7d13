"""Checks the ledger's integrity now and then; violations become metrics and errors in the log."""

from typing import Any

import structlog

from market.chain.errors import ChainError
from market.ledger.integrity_check import check_integrity, check_with_chain, publish
from market.resources import Resources

log = structlog.get_logger()


async def check_ledger(ctx: dict[str, Any]) -> None:
    """arq cron: check the ledger, and reconcile it with the contract, if there is one."""
    resources: Resources = ctx["resources"]
    try:
        report = await check_with_chain(resources.long_sessions, resources.settings.payments)
    except ChainError as error:  # the ledger can be checked without the chain
        log.error("reconciliation_skipped", reason=str(error))
        report = await check_integrity(resources.long_sessions)
    publish(report)
