"""The fast path on a CPU: a whole step of a Llama-like model in one call of compiled code."""
