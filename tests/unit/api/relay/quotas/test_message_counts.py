"""What a stage may send of one epoch."""

import pytest

from api.relay.quotas import message_counts
from api.relay.quotas.message_counts import MessageCounts
from mesh.wire import Step, Token
from mesh.wire.limits import EVENT_BURST, MAX_DRAFT_TOKENS

KEY = ("gen", 1, 0)
CAPACITY = 100


def step(rows: int, wanted: int = 0, *, replay: bool = False) -> Step:
    return Step("gen", 1, 0, rows, wanted, replay)


def test_prefill_replay_and_sampled_rows_are_counted_apart() -> None:
    counts = MessageCounts()
    assert counts.step(KEY, step(100), CAPACITY, 0)
    assert counts.step(KEY, step(100, replay=True), CAPACITY, 0)
    assert counts.step(KEY, step(1300, 1300), CAPACITY, 0)
    for key in (("gen", 1, 1), ("gen", 2, 0), ("other", 1, 0)):
        assert counts.step(key, step(100), CAPACITY, 0)


@pytest.mark.parametrize("more", [step(1), step(1, replay=True), step(1, 1)])
def test_a_stage_that_has_sent_too_much_sends_no_more(more: Step) -> None:
    counts = MessageCounts()
    for most in (step(100), step(100, replay=True), step(1300, 1300)):
        assert counts.step(KEY, most, CAPACITY, 0)
    assert not counts.step(KEY, more, CAPACITY, 0)


def test_sampled_rows_are_as_many_as_tokens_and_their_drafts_need() -> None:
    counts, rows = MessageCounts(), 1 + MAX_DRAFT_TOKENS
    ahead = message_counts.STEPS_AHEAD
    assert counts.step(KEY, step(rows * ahead, rows * ahead), 10_000, 0)
    assert not counts.step(KEY, step(1, 1), 10_000, 0)
    assert counts.step(KEY, step(1, 1), 10_000, 1)
    assert counts.step(KEY, step(1, 1), 10_000, None)
    assert not counts.step(KEY, step(1, 1), CAPACITY, None)


def test_what_did_not_get_through_is_not_counted() -> None:
    for rejected in (step(100), step(100, replay=True), step(1300, 1300)):
        counts = MessageCounts()
        assert counts.step(KEY, rejected, CAPACITY, None)
        counts.undo(KEY, rejected)
        assert counts.step(KEY, rejected, CAPACITY, None)
        assert not counts.step(KEY, rejected, CAPACITY, None)


def test_events_are_few_at_once_and_one_a_second() -> None:
    now = [1000.0]
    counts = MessageCounts(clock=lambda: now[0])
    assert [counts.event(KEY) for _ in range(EVENT_BURST + 2)].count(True) == EVENT_BURST
    now[0] += 1.0
    assert [counts.event(KEY), counts.event(KEY)] == [True, False]
    now[0] += 3600
    assert [counts.event(KEY) for _ in range(EVENT_BURST + 2)].count(True) == EVENT_BURST


def test_tokens_may_come_twice_and_have_an_average_length() -> None:
    counts = MessageCounts()
    short = Token("gen", 1, 0, 7, "x")
    assert [counts.token(KEY, short, CAPACITY) for _ in range(201)].index(False) == 200
    counts, long = MessageCounts(), Token("gen", 1, 0, 7, "x" * 4096)
    assert [counts.token(KEY, long, CAPACITY) for _ in range(100)].index(False) == 13


def test_the_longest_unused_is_forgotten() -> None:
    counts = MessageCounts()
    for number in range(message_counts.MAX_ENTRIES + 1):
        counts.event(("gen", number, 0))
    assert len(counts._stages) == message_counts.MAX_ENTRIES
