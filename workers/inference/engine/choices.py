"""A submitted request as the engine's own requests, one for each choice."""

from __future__ import annotations

from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import Executor
from workers.inference.engine.protocol import EngineRequest
from workers.inference.engine.request import Grammar, Request


def make_choices(request: EngineRequest, executor: Executor) -> list[Request]:
    """One Request for each choice, past the tokens of a continuation. Raises EngineError."""
    try:
        choices = [
            _choice(request, executor, index, grammar)
            for index, grammar in enumerate(_grammars(request, executor))
        ]
    except EngineError:
        raise
    except Exception as error:  # the tokenizer's own, as it replays a continuation
        raise EngineError(
            "engine_error", f"the request can't be prepared: {error}", retryable=True
        ) from error
    for choice in choices[1:]:
        choice.scorer = choices[0]
    return choices


def _grammars(request: EngineRequest, executor: Executor) -> list[Grammar | None]:
    """One for each choice, compiled once; all at their start, as replaying moves them."""
    n = request.sampling.n
    if request.grammar is None:
        return [None] * n
    compiled = executor.grammar(request.grammar)
    return [compiled, *(compiled.copy() for _ in range(n - 1))]


def _choice(
    request: EngineRequest, executor: Executor, index: int, grammar: Grammar | None
) -> Request:
    seed = executor.seed(request)
    return Request(
        request,
        index=index,
        decoder=executor.decoder(request.sampling),
        eos_token_ids=executor.eos_token_ids,
        context_length=executor.info.context_length,
        seed=None if seed is None else seed + index,
        grammar=grammar,
    )
