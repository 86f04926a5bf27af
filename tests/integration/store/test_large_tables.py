"""What statements cost beside a flood of queued jobs and a year of finished ones: pages, which
depend on plans and rows alone. Each is run in small tables and in large ones, and may cost little
more in the latter. Every function of `store` that asks Postgres has a case, or a reason why not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import store
from benchmarks.big_tables import NUM_LIGHT
from store import reaping
from tests.integration.store.large import exempt, of_jobs, of_others
from tests.integration.store.large.world import World, world
from tests.support.services import Services

CASES = {**of_jobs.CASES, **of_others.CASES}
BOUNDS = {**of_jobs.BOUNDS, **of_others.BOUNDS}
BOUNDS_AMONG_MILLIONS = {**BOUNDS, **of_jobs.BOUNDS_AMONG_MILLIONS}
MILLIONS = 1_000_000
EXEMPT = exempt.EXEMPT

CONNECTIONS = ("DictConnection", "AsyncPool", "SyncPool")

# Those who run these have one plan for all values (store.pools); others are planned as it comes.
PLANNED_ONCE = {"attempts", "claiming", "hints", "leases", "outcomes", "reaping", "reservations"}
_PLANNED = [
    (name, mode)
    for mode in ("force_generic_plan", "force_custom_plan")
    for name in CASES
    if mode == "force_generic_plan" or name.partition(".")[0] not in PLANNED_ONCE
]

# Trees get a level deeper, and a statement looks into 17 partitions and some indexes.
MAX_GROWTH = 1.5
MAX_MORE_PAGES = 60
BUILD_10M_S = 3_600


@pytest.fixture(scope="module")
def small(services: Services) -> Iterator[World]:
    with world(services, num_queued=4_000, num_finished=4_000, num_light=100) as built:
        yield built


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((40_000, 40_000), id="40k"),
        pytest.param(
            (1_500_000, 10_000_000),
            id="10m",
            marks=[pytest.mark.slow, pytest.mark.timeout(BUILD_10M_S)],
        ),
    ],
)
def large(services: Services, request: pytest.FixtureRequest) -> Iterator[World]:
    num_queued, num_finished = request.param
    with world(
        services, num_queued=num_queued, num_finished=num_finished, num_light=NUM_LIGHT
    ) as built:
        yield built


@pytest.mark.parametrize(("name", "mode"), _PLANNED)
def test_a_statement_costs_no_more_beside_a_flood(
    small: World, large: World, name: str, mode: str
) -> None:
    costs = []
    for tables in (small, large):
        tables.plan(mode)
        costs.append(CASES[name](tables).pages(tables.roles.owner))

    few, many = costs
    bounds = BOUNDS_AMONG_MILLIONS if large.tables.num_queued > MILLIONS else BOUNDS
    assert many <= max(MAX_GROWTH * few + MAX_MORE_PAGES, bounds.get(name, 0)), costs


def test_every_statement_has_a_case_or_a_reason() -> None:
    asking = set(_functions_that_ask())

    tested = {name.split()[0] for name in CASES} - {"retention.expiries"}
    assert tested | EXEMPT.keys() == asking
    assert not tested & EXEMPT.keys()


def test_jobs_that_are_late_or_cancelled_are_found_in_a_backlog(large: World) -> None:
    owner = large.roles.owner
    reaping.reap_waiting(large.roles.worker)
    ids = large.light_jobs()[:3]
    owner.execute("UPDATE jobs SET deadline_at = now() WHERE id = ANY(%s)", (ids[:2],))
    owner.execute(
        "UPDATE jobs SET cancel_requested_at = now(), cancel_by = 'user' WHERE id = ANY(%s)",
        (ids[1:],),
    )

    reaped = reaping.reap_waiting(large.roles.worker)

    verdicts = {job.job_id: job.verdict for job in reaped}
    assert verdicts == {ids[0]: "deadline", **dict.fromkeys(ids[1:], "cancelled_by_user")}


def _functions_that_ask() -> Iterator[str]:
    """Those that others may call and that are given a connection or a pool."""
    for path in Path(store.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = ast.unparse(node.args)
                if node.name[0] != "_" and any(kind in arguments for kind in CONNECTIONS):
                    yield f"{path.stem}.{node.name}"
