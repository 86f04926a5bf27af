"""`millrace status`: who runs, what waits, which workers are alive."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psycopg
import redis
from rich.console import Console
from rich.table import Table

from cli.stack.addresses import broker_url, owner_url
from cli.stack.errors import StackError
from cli.stack.state import ProcessRecord, Running, StateFolder
from store.leases import list_live, refusals_of
from store.overview import jobs_by_status
from store.pools import connect
from store.retention import last_runs
from tasks.queues import BILLING, MAINTENANCE, queues_of_pool
from tasks.settings import broker_transport_options

_READY_TIMEOUT_S = 660.0  # a large model may be loading


def collect(state: StateFolder) -> dict[str, Any]:
    """All of it as plain values. What can't be asked is None, with the reason in `errors`."""
    errors: dict[str, str] = {}
    running = state.read_running()
    report: dict[str, Any] = {
        "is_running": running is not None and running.is_alive,
        "is_ready": running is not None and running.is_alive and running.is_ready,
        "addresses": running.addresses if running else {},
        "processes": [_process(record) for record in _records(running)],
    }
    report |= {"workers": None, "refused": {}, "jobs": None, "queues": None, "retention": None}
    try:
        report |= _ask_postgres(owner_url(state))
        pools = {worker["pool"] for worker in report["workers"]} | {"default"}
        report["queues"] = _queue_lengths(broker_url(state), pools)
    except (StackError, psycopg.Error, redis.RedisError) as error:
        errors["services"] = " ".join(str(error).split())
    return report | {"errors": errors}


def wait_until_ready(state: StateFolder) -> Running:
    """The running stack, once it is up; somebody else starts it at this moment or has done so."""
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        running = state.read_running()
        if running is not None and running.is_ready and running.is_alive:
            return running
        with state.lock() as is_free:
            if is_free:
                raise StackError("the other start did not succeed, see .millrace/logs; try again")
        time.sleep(0.1)
    raise StackError("another `millrace up` is starting and not ready yet, see `millrace status`")


def show(report: dict[str, Any], console: Console) -> None:
    """For people."""
    state = (
        "running" if report["is_ready"] else "starting" if report["is_running"] else "not running"
    )
    console.print(f"Millrace is {state}.")
    if report["processes"]:
        console.print(_table("processes", report["processes"]))
    if report["workers"]:
        console.print(_table("workers", report["workers"]))
    for model, reason in report["refused"].items():
        console.print(f"model {model} is not served: {reason}", markup=False, highlight=False)
    for name in ("queues", "jobs"):
        if report[name] is not None:
            counts = ", ".join(f"{key} {count}" for key, count in report[name].items())
            console.print(f"{name}: {counts or 'none'}", highlight=False)
    if report["retention"]:
        console.print(_retention(report["retention"]), highlight=False)
    for reason in report["errors"].values():
        console.print(reason, markup=False, highlight=False)


def _retention(runs: list[dict[str, Any]]) -> str:
    age_s = min(run["age_s"] for run in runs)
    failed = ", ".join(f"{run['kind']} ({run['error']})" for run in runs if run["error"])
    removed = sum(run["num_removed"] for run in runs)
    line = f"retention: {round(age_s)} s ago, {removed} rows removed"
    return f"{line}, failed: {failed}" if failed else line


def _records(running: Running | None) -> list[ProcessRecord]:
    return [running.supervisor, *running.processes] if running else []


def _process(record: ProcessRecord) -> dict[str, Any]:
    is_alive = record.find() is not None
    return {
        "name": record.name,
        "pid": record.pid,
        "state": "running" if is_alive else "dead",
        "uptime_s": round(time.time() - record.started_at) if is_alive else None,
        "restarts": record.num_restarts,
        "url": record.url,
    }


def _ask_postgres(url: str) -> dict[str, Any]:
    with connect(url, application_name="millrace-status") as connection:
        leases = list_live(connection)
        jobs = jobs_by_status(connection)
        runs = last_runs(connection)
    workers = [
        {
            "pid": lease["pid"],
            "host": lease["hostname"],
            "pool": lease["pool"],
            "device": lease["device"],
            "models": ", ".join(lease["models"]),
            "slots": lease["slots"],
            "running": lease["num_running"],
            "draining": lease["draining"],
            "beat_age_s": round(lease["beat_age_s"], 1),
        }
        for lease in leases
    ]
    refused = refusals_of(leases)
    return {"workers": workers, "refused": refused, "jobs": jobs, "retention": runs}


def _queue_lengths(url: str, pools: set[str]) -> dict[str, int]:
    """True lengths: with one priority step a queue is one list. Empty lanes are left out."""
    lanes = [queue.name for pool in sorted(pools) for queue in queues_of_pool(pool)]
    names = [BILLING, MAINTENANCE, *lanes]
    prefix = broker_transport_options["global_keyprefix"]
    with contextlib.closing(redis.Redis.from_url(url, socket_timeout=5)) as client:
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.llen(f"{prefix}{name}")
        lengths = dict(zip(names, pipeline.execute(), strict=True))
    return {name: n for name, n in lengths.items() if n or name in (BILLING, MAINTENANCE)}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table
