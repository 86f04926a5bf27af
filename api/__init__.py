"""The HTTP API: admits jobs, shows them, streams their events. Stateless; run as many as needed."""
