"""Structured output: which tokens a request's grammar allows next. Built on llguidance, no torch.

What EngineRequest.grammar holds: llguidance's JSON form of a grammar (its TopLevelGrammar), as
text, at most MAX_GRAMMAR_BYTES long in UTF-8:

    JSON schema   {"grammars": [{"json_schema": {...}}]}
    JSON object   {"grammars": [{"json_schema": {"type": "object"}}]}
    regex         {"grammars": [{"lark_grammar": "start: /[0-9]{4}/"}]}
    choices       {"grammars": [{"lark_grammar": "start: \\"yes\\" | \\"no\\""}]}
    Lark          {"grammars": [{"lark_grammar": "start: ..."}]}

The first three are what `LLMatcher.grammar_from_json_schema` and `LLMatcher.grammar_from_regex`
return. `LLMatcher.grammar_from_lark` returns the bare Lark text, which must be wrapped as shown;
a choice is a Lark string, `json.dumps(choice)`. The top-level `max_tokens` must
be absent or null: it would end a generation inside its grammar.

A request with a grammar ends with STOP when nothing may follow, with or without ignore_eos, or at
an end-of-sequence token, which is allowed wherever the text is complete. One that ends with LENGTH
may stop anywhere inside its grammar. Text that can go on in one way only does so in the tokens
that the tokenizer itself would choose.

A chain of some thousand references overflows llguidance's stack, and some patterns keep it busy for
hours, so each grammar is compiled in another process first (grammar_guard.py). llguidance 1.9.1
departs from JSON Schema in two places: repeated keys count towards minProperties, and a number
between an exclusive whole bound and a fraction less than 1 away may be that bound.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.inference.engine.errors import EngineError
from workers.inference.engine.grammar_guard import TokenizerSource, shared_guard

MAX_GRAMMAR_BYTES = 256 * 1024
_WORD_BITS = 32
# Bounds on what one grammar may cost. The fuels are llguidance's own defaults: about 20 ms for the
# construction and 15 ms for one mask at the worst. A lexer state takes 1 to 2 kB.
_LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,  # they would quote the text generated so far
}
_SILENT = 0  # log level; llguidance writes to stderr


class TokenGrammar:
    """Where one generation stands in its grammar. One thread at a time."""

    def __init__(self, matcher: LLMatcher, num_tokens: int) -> None:
        """`num_tokens` is what the matcher's masks cover."""
        self.matcher = matcher
        self.num_tokens = num_tokens

    @property
    def is_stopped(self) -> bool:
        """May nothing follow any more?"""
        return bool(self.matcher.is_stopped())

    @property
    def error(self) -> EngineError | None:
        """Why the grammar can't be followed any further, for instance that it grew too complex."""
        if not self.matcher.is_error():
            return None
        return _invalid(_shortened(str(self.matcher.get_error())))

    def accept(self, token_id: int) -> None:
        """Go on by one token. Raises EngineError for a token that may not follow."""
        if not self.matcher.consume_token(token_id):
            raise self.error or _invalid("the text is complete, nothing may follow")

    def copy(self) -> TokenGrammar:
        """Another generation at the same place, for another thread if need be."""
        return TokenGrammar(self.matcher.deep_copy(), self.num_tokens)


class GrammarCompiler:
    """Compiles grammars for one model; `compile` may be called by any thread.

    Building one takes about 0.3 s for 50,000 tokens. A tokenizer that llguidance can't read fails
    no model: only requests with a grammar are refused then.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        """`vocab_size` is the length of a row of logits; it may differ from the tokenizer's."""
        self._guard = shared_guard(tuple(_LIMITS.items()))
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self._num_tokens = max(vocab_size, max(ids, default=0) + 1)
        self._refusal: str | None = None
        if not eos_token_ids:  # llguidance would guess one, and the engine not know it
            self._refusal = "no grammars with a model that has no end-of-sequence token"
            return
        text, ends = _json_of(tokenizer), sorted(eos_token_ids)
        try:
            self._tokenizer = LLTokenizer(text, n_vocab=self._num_tokens, eos_token=ends)
        except BaseException as error:  # a panic in its Rust code is no Exception
            self._refusal = f"no grammars with this model's tokenizer: {error}"
            return
        self._source = TokenizerSource(
            key=hashlib.sha256(f"{self._num_tokens} {ends} {text}".encode()).hexdigest(),
            read_json=lambda: _json_of(tokenizer),
            size=self._num_tokens,
            ends=tuple(ends),
        )

    def compile(self, text: str) -> TokenGrammar:
        """A grammar at its start; takes about a millisecond, at the worst some 100 ms.

        One that is new here is tried out in another process first (grammar_guard.py), which takes
        a few seconds at the worst, and longer for the first one. Raises EngineError
        `invalid_grammar` with llguidance's reason, `unsupported` if the model's tokenizer is not
        made for it. The GIL is free meanwhile.
        """
        if self._refusal is not None:
            raise EngineError("unsupported", self._refusal)
        _check(text)
        if (reason := self._guard.refusal(self._source, text)) is not None:
            raise _invalid(_shortened(reason))
        limits = LLParserLimits(**_LIMITS)
        matcher = LLMatcher(self._tokenizer, text, log_level=_SILENT, limits=limits)
        grammar = TokenGrammar(matcher, self._num_tokens)
        # Some faults show only where tokens are first looked at.
        if grammar.error is None:
            grammar.matcher.compute_bitmask()
        if grammar.error is not None:
            raise grammar.error
        return grammar


def allowed_tokens(grammars: Sequence[TokenGrammar], vocab_size: int) -> NDArray[np.int32]:
    """Bit i of row r, lowest bit first: may token i follow in grammar r? [rows, vocab / 32].

    Computed in parallel, without the GIL. Look at `error` afterwards: such a row means nothing. All
    grammars are of one model, each in one row. Bits beyond `vocab_size` are 0.
    """
    masks = np.zeros((len(grammars), _num_words(grammars[0].num_tokens)), dtype=np.int32)
    rows = [(grammar.matcher, row) for row, grammar in enumerate(grammars)]
    _executor().unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.strides[0], len(grammars))
    # A tokenizer may know more tokens than the model has scores for.
    masks = masks[:, : _num_words(vocab_size)]
    if num_bits := vocab_size % _WORD_BITS:
        masks[:, -1] &= (1 << num_bits) - 1
    return masks


def _check(text: str) -> None:
    try:
        if len(text.encode()) > MAX_GRAMMAR_BYTES:
            raise _invalid(f"the grammar is larger than {MAX_GRAMMAR_BYTES} bytes")
        grammar: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the grammar is not JSON: {error}") from error
    if not isinstance(grammar, dict):
        raise _invalid("the grammar is not a JSON object")
    if grammar.get("max_tokens") is not None:
        raise _invalid("max_tokens belongs to the request, not to its grammar")


def _num_words(num_tokens: int) -> int:
    return -(-num_tokens // _WORD_BITS)


def _json_of(tokenizer: Tokenizer) -> str:
    """tokenizer.json, without what would cut or fill up the texts that llguidance encodes."""
    content = json.loads(tokenizer.to_str())
    return json.dumps(content | {"padding": None, "truncation": None})


def _shortened(reason: str) -> str:
    """llguidance's own words without the mark of what verbose_errors leaves out."""
    return reason.removesuffix("<non-verbose/>").strip()


def _invalid(reason: str) -> EngineError:
    return EngineError("invalid_grammar", reason)


@functools.cache
def _executor() -> LLExecutor:
    """Threads that compute masks, shared by all models. Made at first use: never before a fork."""
    return LLExecutor()
