"""What an event is worth, by who says it."""

import pytest

from market.jobs.messaging import Event
from mesh.wire import PLATFORM, Cancel, Ended, GenerationRefused, Pong, Token
from mesh.wire.refusal_codes import (
    GRAMMAR_REFUSED,
    INPUT_FAULTS,
    KNOWN_CODES,
    LOST_STATE,
    NOT_NOW,
    OWN_FAULTS,
    SENDER_FAULTS,
)
from workers.supervisor.claims import Dispute, Failure, ObservedFault, OwnFault, claim_of

ROUTE = ["edge", "middle", "last"]


def claimed(sender: str, accused: str, code: str, route: list[str] = ROUTE) -> object:
    return claim_of(Event(GenerationRefused("gen", 1, accused, code), sender), route)


@pytest.mark.parametrize("code", sorted(OWN_FAULTS))
def test_what_is_a_nodes_own_fault_nobody_else_says(code: str) -> None:
    assert claimed("middle", "edge", code) is None
    assert claimed("middle", "last", code) is None


@pytest.mark.parametrize("code", sorted(NOT_NOW | SENDER_FAULTS - INPUT_FAULTS))
def test_a_node_speaks_for_itself(code: str) -> None:
    assert claimed("middle", "middle", code) == OwnFault(1, "middle", code)
    assert claimed("edge", "edge", code) == OwnFault(1, "edge", code)


@pytest.mark.parametrize("code", sorted((LOST_STATE | INPUT_FAULTS) - {"gap"}))
def test_what_a_node_fails_on_others_may_have_sent(code: str) -> None:
    assert claimed("middle", "middle", code) == Failure(1, "middle", "edge", code)
    assert claimed("last", "last", code) == Failure(1, "last", "middle", code)


@pytest.mark.parametrize("code", sorted(INPUT_FAULTS))
def test_the_edge_fails_on_the_prompt(code: str) -> None:
    assert claimed("edge", "edge", code) == Failure(1, "edge", None, code)


@pytest.mark.parametrize("code", sorted(LOST_STATE))
def test_nobody_sends_the_edge_what_it_loses(code: str) -> None:
    assert claimed("edge", "edge", code) == OwnFault(1, "edge", code)


@pytest.mark.parametrize("code", sorted(SENDER_FAULTS))
def test_what_a_node_says_of_its_predecessor_is_a_dispute(code: str) -> None:
    assert claimed("middle", "edge", code) == Dispute(1, "middle", "edge", code)
    assert claimed("edge", "last", code) == Dispute(1, "edge", "last", code)
    assert claimed("last", "edge", code) is None
    assert claimed("stranger", "edge", code) is None
    assert claimed("middle", "stranger", code) is None


def test_only_an_edge_has_a_grammar() -> None:
    assert claimed("edge", "edge", GRAMMAR_REFUSED) == OwnFault(1, "edge", GRAMMAR_REFUSED)
    assert claimed("middle", "middle", GRAMMAR_REFUSED) == OwnFault(1, "middle", "broken_rule")


def test_what_nobody_knows_is_a_broken_rule() -> None:
    assert claimed("middle", "edge", "made up") == Dispute(1, "middle", "edge", "broken_rule")
    assert claimed("middle", "middle", "made up") == OwnFault(1, "middle", "broken_rule")


def test_a_gap_is_between_two() -> None:
    assert claimed("middle", "middle", "gap") == Dispute(1, "middle", "edge", "gap")
    assert claimed("middle", "edge", "gap") is None


@pytest.mark.parametrize("code", sorted(KNOWN_CODES))
def test_a_route_of_one_node_has_nobody_else_to_accuse(code: str) -> None:
    fault = claimed("edge", "edge", code, ["edge"])
    assert fault in (OwnFault(1, "edge", code), Failure(1, "edge", None, code))


def test_the_platform_has_seen_what_it_says() -> None:
    assert claimed(PLATFORM, "last", "wrong_width") == ObservedFault(1, "last", "broken_rule")
    assert claimed(PLATFORM, "stranger", "wrong_width") is None


@pytest.mark.parametrize("sender", [*ROUTE, "stranger", PLATFORM])
def test_only_who_may_ends_answers_or_cancels(sender: str) -> None:
    ended, pong, cancel = Ended("gen", 1, "stop", 1), Pong("gen", 1, "middle", 5), Cancel("gen", 1)
    assert claim_of(Event(ended, sender), ROUTE) == (ended if sender == "edge" else None)
    assert claim_of(Event(pong, sender), ROUTE) == (pong if sender == "middle" else None)
    assert claim_of(Event(cancel, sender), ROUTE) == (cancel if sender == PLATFORM else None)
    assert claim_of(Event(Token("gen", 1, 0, 1, "x"), sender), ROUTE) is None


@pytest.mark.parametrize("sender", ["edge", PLATFORM])
def test_nobody_on_no_route_has_a_say(sender: str) -> None:
    assert claimed(sender, "edge", "kv_full", []) is None
    assert claim_of(Event(Ended("gen", 1, "stop", 1), sender), []) is None
