"""Functions of `store` whose statements may cost more the more rows there are, and why."""

from __future__ import annotations

_BY_HAND = "an operator's command"
_END_OF_BATCH = "once a batch, when it is over or its driver died, by its own lines"
_REPORT = "sums the period asked for, by the index of the tenant and the time"

EXEMPT = {
    "batch_driving.take_over": _END_OF_BATCH,
    "batch_driving.fail": _END_OF_BATCH,
    "batch_driving.end": _END_OF_BATCH,
    "batch_driving.forget_lines": "some lines at a time, of a batch that is over",
    "batch_driving.refuse_pending": "some lines at a time, of a batch that is cancelled or late",
    "batch_results.read_logprobs": "the statement of jobs.read_logprobs",
    "catalog.apply_catalog": _BY_HAND,
    "files.begin_upload": "sums the tenant's own files, MAX_FILES at most",
    "files.has_room": "as begin_upload",
    "hints.forget_hints": "once after a loss of Redis, in batches",
    "ledger.transfer": _BY_HAND,
    "ledger.entry_by_key": _BY_HAND,
    "ledger.usage_entry_of": _BY_HAND,
    "ledger.run_check": "`ledger verify` reads all books",
    "ledger.run_checks": "`ledger verify` reads all books",
    "overview.jobs_by_status": "`millrace status` counts what is open",
    "pools.as_tenant": "runs what others ask",
    "tenants.create_tenant": _BY_HAND,
    "tenants.find_tenant": _BY_HAND,
    "tenants.get_batch_quota": _BY_HAND,
    "tenants.set_batch_quota": _BY_HAND,
    "tenants.get_limits": _BY_HAND,
    "tenants.set_limits": _BY_HAND,
    "tenants.list_tenants": _BY_HAND,
    "tenants.create_api_key": _BY_HAND,
    "tenants.list_api_keys": _BY_HAND,
    "tenants.revoke_api_key": _BY_HAND,
    "tenants.set_scopes": _BY_HAND,
    "usage_buckets.usage_buckets": _REPORT,
    "usage_buckets.cost_buckets": _REPORT,
    "usage_reports.usage_report": _REPORT,
    "webhooks.delete_endpoint": "deletes its deliveries with it",
}
