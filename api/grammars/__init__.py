"""Structured output: from what a client asks for to one grammar that every worker compiles."""
