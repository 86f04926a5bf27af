"""What one tenant can do to the others: `python -m benchmarks.abuse --json`.

- `worst_loop_lag_ms`: the longest that one API process's event loop was held, over every route at
  its largest legal answer.
- `victim_post_ms_p50_ratio`, `victim_post_ms_p99_ratio`: a tenant's POST /v1/jobs beside an abusive
  tenant over the same alone, by turns; the worst of all kinds of abuse (`attackers.py`).
- `batch_worker_rss_mb`: the most memory that the batch worker took while a tenant without credit
  submitted the largest files over and over; `other_batch_s` is another tenant's batch of one line
  meanwhile.
- `claim_ms_p99`: taking a job while somebody else has 1.5 million queued.
- `tickets_over_ready`: the most Celery messages that waited for each job that was ready;
  `neighbour_s_after_cancel` is how long another tenant's job waited when all of them had been
  cancelled.

`--only` chooses among `lag`, `victim`, `batches`, `claim` and `tickets`. Every server is this
machine's own and ends with the run.
"""
