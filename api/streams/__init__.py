"""Event streams: one pub/sub connection a process, a cursor a reader.

hub ──live events──> channel (ring of the last events of one job)
                        │ wakes
sse <──batches── reader (cursor) ──reads──> the log in Redis, or after its end Postgres

A stream ends: with `done` (marker in the log, or synthesised from the job row) · when the client
leaves · when it doesn't read for 30 s · at its greatest age · when the process shuts down. Only the
first is the end of the job; after each other one a client resumes by Last-Event-ID.
"""
