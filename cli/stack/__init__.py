"""One machine's Millrace: embedded Postgres and Redis, the table of processes, their supervisor."""
