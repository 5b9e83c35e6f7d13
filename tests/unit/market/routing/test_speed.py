"""How long a generation takes at the measured speed."""

from hypothesis import given
from hypothesis import strategies as st

from market.routing.speed import RouteSpeed, speed_of
from tests.support.market.routes import node


def test_a_step_goes_through_all_nodes_and_hops() -> None:
    route = [node(0, 3, latency=400, hop=50), node(3, 6, latency=500, hop=50)]
    assert speed_of(route) == RouteSpeed(1.0)


def test_a_node_that_has_not_measured_makes_the_speed_unknown() -> None:
    assert speed_of([node(0, 3, latency=400), node(3, 6, latency=0)]) is None


@given(step=st.floats(0.001, 100), prompt=st.integers(1, 100_000), seconds=st.floats(1, 3600))
def test_as_many_tokens_fit_as_end_in_time(step: float, prompt: int, seconds: float) -> None:
    speed = RouteSpeed(step)
    fit = speed.tokens_within(seconds, prompt)
    assert fit == 0 or speed.seconds(prompt, fit) <= seconds * (1 + 1e-9)
    assert speed.seconds(prompt, fit + 2) > seconds
