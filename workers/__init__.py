"""Background processes: inference (GPU) and maintenance (Postgres only)."""
