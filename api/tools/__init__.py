"""Function calling: how a model writes calls, grammars that make it, and parsing what it wrote."""
