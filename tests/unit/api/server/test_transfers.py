"""Transfers: their rate, their end, and who gives way."""

import asyncio

import pytest

from api.server.errors import TransfersFull, TransferTooSlow
from api.server.transfers import Transfer, TransferBudget
from market.settings.limits import LimitSettings

NEVER = 3600.0


def budget(**limits: float) -> TransferBudget:
    return TransferBudget(LimitSettings.model_validate({"max_transfer_bytes": 2**16} | limits))


async def forever() -> None:
    await asyncio.sleep(NEVER)


async def test_bytes_count_until_the_transfer_is_over() -> None:
    transfers = budget()
    with transfers.open("one") as transfer:
        transfer.add(100)
        transfer.add(0)
        transfer.add(50)
        assert transfers.used == transfer.size == 150
    assert transfers.used == 0
    transfer.close()
    assert transfers.used == 0


async def test_who_makes_no_headway_is_too_slow() -> None:
    transfer = budget(transfer_grace=0.01).open("one")
    with pytest.raises(TransferTooSlow):
        await transfer.wait(forever())


async def test_each_byte_earns_time_up_to_a_deadline() -> None:
    clock = asyncio.get_running_loop().time

    async def trickle(transfer: Transfer) -> None:
        while True:
            await transfer.wait(asyncio.sleep(0.01))

    for size, least in ((1, 0.1), (100, 0.2), (10_000, 0.3)):
        began = clock()
        limits = {"transfer_grace": 0.1, "transfer_rate": 1000, "transfer_seconds": 0.3}
        with budget(**limits).open("one") as transfer:
            transfer.add(size)
            with pytest.raises(TransferTooSlow):
                await trickle(transfer)
        assert clock() - began >= least


async def test_nobody_stands_still_for_long_however_much_has_come() -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    with budget(transfer_grace=0.1, transfer_rate=1).open("one") as transfer:
        transfer.add(1000)
        await transfer.wait(asyncio.sleep(0.05))
        with pytest.raises(TransferTooSlow):
            await transfer.wait(forever())
    assert clock() - began >= 0.15


async def test_an_error_of_the_other_side_is_passed_on() -> None:
    async def gone() -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await budget().open("one").wait(gone())


async def waiting(transfers: TransferBudget, owner: str, size: int) -> asyncio.Task[None]:
    """A transfer of so many bytes, whose other side does nothing."""

    async def run() -> None:
        with transfers.open(owner) as transfer:
            transfer.add(size)
            await transfer.wait(forever())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    return task


async def ended(task: asyncio.Task[None]) -> bool:
    await asyncio.wait([task], timeout=0.05)
    return task.done() and isinstance(task.exception(), TransfersFull)


async def test_over_the_budget_the_largest_of_the_heaviest_owner_gives_way() -> None:
    transfers = budget()
    single = await waiting(transfers, "single", 25_000)
    small = await waiting(transfers, "heavy", 10_000)
    large = await waiting(transfers, "heavy", 20_000)
    newest = transfers.open("newest")
    newest.add(20_000)
    assert await ended(large)
    assert not await ended(single)
    assert not await ended(small)
    assert transfers.used == 55_000
    for task in (single, small):
        task.cancel()


async def test_the_heaviest_owner_cannot_push_others_out() -> None:
    transfers = budget()
    other = await waiting(transfers, "other", 20_000)
    first = await waiting(transfers, "heavy", 40_000)
    newest = transfers.open("heavy")
    with pytest.raises(TransfersFull):
        newest.add(20_000)
    assert transfers.used == 60_000
    assert not await ended(other)
    assert not await ended(first)
    for task in (other, first):
        task.cancel()


async def test_who_is_being_served_is_not_ended() -> None:
    transfers = budget()
    busy: Transfer = transfers.open("busy")
    busy.add(60_000)
    with pytest.raises(TransfersFull):
        transfers.open("newest").add(20_000)
    assert transfers.used == 60_000


async def test_an_ended_transfer_counts_no_more() -> None:
    transfers = budget()
    transfer = transfers.open("one")
    transfer.add(100)
    transfer.end()
    transfer.add(100)
    assert transfers.used == 0
