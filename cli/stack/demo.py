"""The demo tenant, its key, and the first prompt a newcomer sees answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from billing.ledger import entry_for_job
from cli.stack.errors import StackError
from cli.stack.files import write_private
from cli.stack.state import StateFolder
from millrace import Client, Job
from store import tenants
from store.api_keys import ALL, hash_key, parse_key_id
from store.pools import DictConnection, connect

TENANT = "demo"
CREDIT_MICROS = 100_000_000  # 100 units of the currency
PROMPT = "What is a service tier?"
_LEDGER_TIMEOUT_S = 15.0


def ensure_demo_tenant(connection: DictConnection, state: StateFolder) -> None:
    """The tenant with credit, and a key whose text only the state folder holds."""
    tenant_id = tenants.find_tenant(connection, TENANT)
    if tenant_id is None:
        tenant_id = tenants.create_tenant(connection, name=TENANT, credit_micros=CREDIT_MICROS)
    elif _is_usable(connection, state.find_secret("api_key"), state.secret("key_pepper")):
        _give_all_scopes(connection, state.find_secret("api_key") or "")
        return
    pepper = state.secret("key_pepper").encode()
    key = tenants.create_api_key(connection, tenant_id=tenant_id, name="make up", pepper=pepper)
    state.set_secret("api_key", key)


def _give_all_scopes(connection: DictConnection, key: str) -> None:
    """To the key of `make up`, which an earlier release may have made: it is for trying things."""
    if key_id := parse_key_id(key):
        tenants.set_scopes(connection, key_id, [ALL])


def write_env(state: StateFolder, url: str) -> None:
    """`.millrace/env`, to be sourced by a shell."""
    key = state.find_secret("api_key")
    text = f"export MILLRACE_URL={url}\nexport MILLRACE_API_KEY={key}\n"
    write_private(state.env_path, text)


def first_job(url: str, api_key: str, *, model: str, on_text: Callable[[str], None]) -> Job:
    """Send the first prompt and hand on its text as it streams."""
    with Client(url=url, api_key=api_key) as client:
        job = client.jobs.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=120
        )
        for event in client.jobs.events(job.id):
            on_text(event.text)
        return client.jobs.get(job.id)


def ledger_line(owner_url: str, job_id: str) -> str:
    """The job's entry, as soon as billing has written it."""
    deadline = time.monotonic() + _LEDGER_TIMEOUT_S
    with connect(owner_url, application_name="millrace-up") as connection:
        while time.monotonic() < deadline:
            if entry := entry_for_job(connection, UUID(job_id.removeprefix("job_"))):
                return (
                    f"entry {entry.id}: {entry.amount_micros} micros {entry.currency} from "
                    f"{entry.debit_account} to {entry.credit_account}, price version "
                    f"{entry.price_version}"
                )
            time.sleep(0.1)
    raise StackError(f"billing has not settled job {job_id}, see .millrace/logs/billing.log")


def _is_usable(connection: DictConnection, key: str | None, pepper: str) -> bool:
    """False for a key of another database, or one that was revoked."""
    key_id = parse_key_id(key) if key else None
    if key is None or key_id is None:
        return False
    row = connection.execute(
        "SELECT 1 FROM api_keys WHERE key_id = %s AND hash = %s AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now())",
        (key_id, hash_key(pepper.encode(), key)),
    ).fetchone()
    return row is not None
