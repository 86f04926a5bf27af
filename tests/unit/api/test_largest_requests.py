"""What holds the event loop longest is known for every route."""

from __future__ import annotations

from collections import defaultdict

from starlette.routing import Route

from api.app import create_app
from tests.support.largest_requests import Belongings, largest_requests


def test_every_route_has_its_largest_request_and_no_other_is_listed() -> None:
    served = {
        (method, route.path)
        for route in create_app().state.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
    }

    requests = largest_requests(Belongings("tiny", defaultdict(str)))

    assert set(requests) - {("GET", "/openapi.json")} == served
    assert all(requests.values())
