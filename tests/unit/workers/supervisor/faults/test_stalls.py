"""What nodes say that they have computed, as far as it counts."""

from hypothesis import given
from hypothesis import strategies as st

from workers.supervisor.faults.stalls import RouteWork

NODES = ["edge", "middle", "last"]


def heard(*positions: int) -> RouteWork:
    work = RouteWork(NODES)
    for node_id, said in zip(NODES, positions, strict=True):
        work.record_answer(node_id, said)
    return work


def test_a_node_counts_up_to_what_the_one_before_it_has() -> None:
    work = heard(10, 500, 8)
    assert work.credited(known=12) == [10, 10, 8]
    assert work.credited(known=9) == [9, 9, 8]


def test_the_first_that_lags_is_behind() -> None:
    assert heard(9, 12, 12).first_behind(known=12) == 0
    assert heard(12, 9, 12).first_behind(known=12) == 1
    assert heard(12, 12, 0).first_behind(known=12) == 2
    assert heard(12, 12, 12).first_behind(known=12) is None


def test_who_is_not_on_the_route_is_not_heard() -> None:
    work = heard(1, 1, 1)
    work.record_answer("stranger", 100)
    assert work.credited(known=12) == [1, 1, 1]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), st.integers(0, 10**6))
def test_no_words_make_more_work_than_there_is(said: list[int], known: int) -> None:
    credited = heard(*said).credited(known)
    assert all(0 <= positions <= known for positions in credited)
    assert credited == sorted(credited, reverse=True)
