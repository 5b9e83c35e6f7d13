"""What a supervision remembers comes back from Postgres as it was."""

import json
from collections import Counter

from workers.supervisor.route_finder import Avoidance, AvoidedDispute, Hop
from workers.supervisor.waiting_state import InputFault, Pending, WaitingState

STATE = WaitingState(
    last_event="5-0",
    reason="silent",
    hops=[Hop("node_0", 0, 3), Hop("node_1", 3, 6)],
    positions={"node_0": 7},
    avoidance=Avoidance(
        {"node_2": 12.5}, [AvoidedDispute("node_3", None, 9.0)], {"node_3": "0xaa"}, {"0xbb"}
    ),
    use_prefix=False,
    tolerated={("node_0", "stall")},
    refusals=Counter({"node_1": 2}),
    pending=[Pending(3, "node_0", "0xaa", None)],
    input_faults=[InputFault(3, Hop("node_0", 0, 3), frozenset({"0xaa"}))],
    failures=1,
    rounds=2,
    tokens_before=3,
)


def test_a_state_comes_back_from_json_as_it_was() -> None:
    back = WaitingState.from_json(json.loads(json.dumps(STATE.to_json())))
    assert back == STATE
    assert isinstance(back.hops[0], Hop)
    assert isinstance(back.pending[0], Pending)
    assert isinstance(back.input_faults[0].hop, Hop)
    back.refusals["node_4"] += 1  # still a counter
    assert back.refusals["node_4"] == 1


def test_a_new_state_comes_back_as_well() -> None:
    assert WaitingState.from_json(WaitingState().to_json()) == WaitingState()
