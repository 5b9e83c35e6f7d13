"""The live route of a generation."""

import msgpack

from mesh.route_record import RouteRecord, epoch_of


def test_a_route_record_survives_and_nothing_else_does() -> None:
    route = RouteRecord(8, 100, ["a", "b", "c"])
    assert RouteRecord.unpack(route.pack()) == route
    for other in (None, b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb(7)):
        assert RouteRecord.unpack(other) is None
    assert (route.edge_node, route.next_node(0), route.next_node(2), route.previous_node(0)) == (
        "a",
        "b",
        "a",
        "c",
    )
    assert route.stage_of("c") == 2
    assert route.stage_of("d") is None
    assert [epoch_of(written) for written in (None, b"sealed", b"7")] == [None, None, 7]
