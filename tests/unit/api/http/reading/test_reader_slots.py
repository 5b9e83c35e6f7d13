"""Slots of readers: a job's, a wallet's, the process's."""

from contextlib import ExitStack

import pytest

from api.http.reading.reader_slots import ReaderSlots
from market.errors import RateLimited, Unavailable
from market.settings.limits import LimitSettings
from mesh.errors import MeshError


def slots(job: int = 100, wallet: int = 100, process: int = 100) -> ReaderSlots:
    return ReaderSlots(
        LimitSettings(readers_per_job=job, readers_per_wallet=wallet, readers_per_process=process)
    )


def held(made: ReaderSlots, stack: ExitStack, wallet: str, job: str = "") -> int:
    """How many slots are given until the first refusal."""
    number = 0
    while True:
        try:
            stack.enter_context(made.hold(wallet, job))
        except MeshError:
            return number
        number += 1


def test_a_job_and_its_wallet_have_limits_of_their_own() -> None:
    made = slots(job=3, wallet=5)
    with ExitStack() as stack:
        assert held(made, stack, "a", "req_1") == 3
        assert held(made, stack, "a", "req_2") == 2
        with pytest.raises(RateLimited) as refused, made.hold("a"):
            pass
        assert refused.value.retry_after
        with made.hold("b", "req_1"):  # another wallet's, whatever it names
            pass


def test_every_wallet_leaves_slots_to_others() -> None:
    made = slots(process=100)
    with ExitStack() as stack:
        shares = [held(made, stack, f"wallet {number}") for number in range(6)]
        assert shares[0] == 50
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] > 0
        assert made.in_use < 100
        with pytest.raises(Unavailable) as refused, made.hold("wallet 0"):
            pass
        assert refused.value.retry_after


def test_a_slot_is_given_back() -> None:
    made = slots(wallet=1)
    for _ in range(3):
        with made.hold("a", "req_1"):
            pass
    with pytest.raises(KeyError), made.hold("a", "req_1"):
        raise KeyError
    assert made.in_use == 0
    assert not made._by_wallet
    assert not made._by_job
