"""How large a schema, regex, choice list or grammar may be. What it may cost stands in sandbox.py.

All are well above what OpenAI takes, and below what the engine takes.
"""

from __future__ import annotations

MAX_GRAMMAR_BYTES = 128 * 1024  # of the serialised grammar
MAX_REGEX_CHARS = 16_384
MAX_LARK_CHARS = 65_536
MAX_CHOICES = 1_000
MAX_CHOICE_CHARS = 1_024

# JSON schemas. A level is an object or array of the schema's own text, not of what it describes.
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_PROPERTIES = 5_000
MAX_SCHEMA_ENUM_VALUES = 5_000
