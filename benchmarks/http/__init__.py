"""What one API process can carry: `python -m benchmarks.http --json`.

- `enqueue_vs_apply_async` (P5): jobs accepted a second by one API process, each committed to
  Postgres and hinted, over bare Celery `apply_async` calls a second of one process.
- `fanout_vs_uvicorn` (P6): token events a second of CPU that the API delivers to its readers, over
  those of a bare uvicorn application that writes the same bytes, ready made.
- `kib_per_idle_stream` (P7): what 10,000 open streams of waiting jobs add to the process.
"""
