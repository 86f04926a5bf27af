"""How late `/livez` is answered while each route gives its largest answer or reads as much.

Seen from outside, so what the system gives to other processes meanwhile counts as well:
`alone_lag_ms` is the same without any request.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import httpx

from store.file_contents import FileContents
from tests.support.belongings import Size, own_the_most
from tests.support.cluster import Cluster
from tests.support.largest import Owner
from tests.support.largest_others import Others
from tests.support.largest_requests import Request, Route, largest_requests, send
from tests.support.loop_lag import Lag

ALONE_S = 5.0
NUM_SHOWN = 10


def measure(*, rounds: int) -> dict[str, Any]:
    """The longest over all requests; those that held the loop longest by name."""
    with Cluster(num_workers=0, num_billing=0, num_maintenance=0) as cluster:
        tenant = cluster.create_tenant("large", credit_micros=10**15)
        with cluster.connect() as connection, cluster.http(tenant) as http:
            contents = FileContents(str(cluster.platform.state_dir / "files"))
            others = Others(connection, tenant.id, contents)
            own = own_the_most(Owner(connection, tenant.id, "demo"), others, Size(num_each=rounds))
            http.get("/v1/models").raise_for_status()
            with Lag(cluster.url) as alone:
                time.sleep(ALONE_S)
            held = {
                f"{route[0]} {route[1]} {request.name}".strip(): _lag_ms(
                    cluster.url, http, route, request, rounds
                )
                for route, requests in largest_requests(own).items()
                for request in requests
            }
    slowest = sorted(held.items(), key=lambda item: -item[1])
    return {
        "worst_loop_lag_ms": round(slowest[0][1], 1),
        "alone_lag_ms": round(alone.worst_ms, 1),
        "loop_lag_ms_by_route": {name: round(ms, 1) for name, ms in slowest[:NUM_SHOWN]},
        "lag_requests": len(held),
    }


def _lag_ms(url: str, http: httpx.Client, route: Route, request: Request, rounds: int) -> float:
    """The least of the rounds' worst: what a route does it does each time."""
    worst = []
    for nth in range(rounds):
        with Lag(url) as lag:
            send(http, route, request, nth=nth)
        worst.append(lag.worst_ms)
    print(f"{route[0]} {route[1]} {request.name}: {min(worst):.1f} ms", file=sys.stderr, flush=True)
    return min(worst)
