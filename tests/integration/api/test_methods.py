"""Which methods a path has, and that `HEAD` is there wherever `GET` is."""

from starlette.routing import Mount, Route

from tests.support.gateway.api import GENERATE, Gateway, problem
from tests.support.gateway.api_served import serve
from tests.support.gateway.routes import routes_of

JOB = "/api/inference/jobs/req_1"


METHODS = {
    GENERATE: "OPTIONS, POST",
    JOB: "DELETE, GET, HEAD, OPTIONS",
    "/api/discovery/probe": "GET, HEAD, OPTIONS, POST",
    "/api/models/far/pydoc-llama/files": "GET, HEAD, OPTIONS, POST",
    "/api/machines/machine_1": "DELETE, OPTIONS",
    "/api/machines/token": "OPTIONS, POST",
    "/api/nodes/heartbeat": "OPTIONS, POST",
    "/link": "GET, HEAD, OPTIONS",
    "/static/style.css": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
}

ALL = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"}


async def test_options_and_refusals_list_the_methods_of_a_path(empty_gateway: Gateway) -> None:
    for path, methods in METHODS.items():
        told = await empty_gateway.client.options(path)
        assert (told.status_code, told.content, told.headers["allow"]) == (204, b"", methods)
        for method in ALL.difference(methods.split(", ")):
            # Whatever else is wrong with it: with a body, too, and without a token.
            refused = await empty_gateway.client.request(
                method, path, content=b"{", headers={"Authorization": ""}
            )
            problem(refused, 405, "method_not_allowed")
            assert refused.headers["allow"] == methods


async def test_every_route_is_among_the_methods_of_its_path(empty_gateway: Gateway) -> None:
    looked_at = 0
    for route in routes_of(empty_gateway.app):
        if isinstance(route, Route):
            path = route.path_format.replace("{", "").replace("}", "")
            told = await empty_gateway.client.options(path)
            assert route.methods
            assert route.methods <= set(told.headers["allow"].split(", ")), path
            looked_at += 1
        else:
            assert isinstance(route, Mount) or not hasattr(route, "methods")
    assert looked_at > 40


async def test_where_there_is_nothing_there_are_no_methods(empty_gateway: Gateway) -> None:
    for method in ("OPTIONS", "HEAD", "GET", "TRACE"):
        answer = await empty_gateway.client.request(method, "/api/nothing")
        assert answer.status_code == 404
        assert "allow" not in answer.headers


async def test_head_is_the_answer_to_get_without_its_body(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one")
    paths = ("/api/inference/models", "/api/discovery/probe?bytes=300000", "/link", job.url)
    async with serve(gateway) as server:
        for path in (*paths, "/api/billing/usage.csv", "/api/inference/jobs/req_none"):
            head, whole = await server.client.head(path), await server.client.get(path)
            assert head.status_code == whole.status_code
            assert head.content == b""
            for name in ("content-type", "content-length", "content-disposition"):
                assert head.headers.get(name) == whole.headers.get(name), (path, name)
        refused = await server.client.head(GENERATE)
        assert (refused.status_code, refused.content) == (405, b"")


async def test_head_of_a_stream_follows_nothing(gateway: Gateway) -> None:
    """The job does not end, and its readers' slots are free."""
    job = await gateway.submit()
    async with serve(gateway) as server:
        answer = await server.client.head(job.url + "/events")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        await server.idle()
    assert gateway.services.reader_slots.in_use == 0
