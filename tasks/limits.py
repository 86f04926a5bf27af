"""Rate limits of tenants: the sums, and the counters in Redis that all processes share.

The API takes from them when it admits a job, billing gives back what the job didn't use. A limit
of n a minute (or another period) lets n through at once and then one each 60/n seconds. Here the
sums are pure, for callers without Redis; `lua/take.lua` does the same in one atomic step, by the
clock of Redis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

PERIOD_S = 60.0
MAX_LIMIT = 2**31 - 1  # what Postgres's integer holds
TAKE_SCRIPT = (Path(__file__).parent / "lua" / "take.lua").read_text()

_SLACK = 1e-6  # sums of fractions are off by less


class Dimension(StrEnum):
    """What is limited. On the wire: the `type` of a refusal."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class Amounts(NamedTuple):
    """Of each dimension."""

    requests: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may ask for in a period; None: as much as it likes."""

    requests: int | None = None
    tokens: int | None = None
    period_s: float = PERIOD_S

    @property
    def is_none(self) -> bool:
        """Whether nothing is limited, so that nothing need be counted."""
        return self.requests is None and self.tokens is None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit, and how much of it is used now."""

    limit: int
    used: float
    period_s: float = PERIOD_S

    @property
    def remaining(self) -> int:
        """How much may be asked for at once."""
        return max(0, math.floor(self.limit - self.used + _SLACK))

    @property
    def reset_s(self) -> float:
        """Until all of it has come back."""
        return self.used * self.period_s / self.limit

    def wait_s(self, amount: float) -> float:
        """Until so much may be asked for, if nobody else asks. At most a period if it ever may."""
        return max(0.0, self.used + amount - self.limit) * self.period_s / self.limit

    def after(self, elapsed_s: float) -> Meter:
        """What is used some time later; never more than the limit, which may be a new one."""
        left = self.used - elapsed_s * self.limit / self.period_s
        return replace(self, used=min(float(self.limit), max(0.0, left)))

    def refuses(self, amount: float) -> bool:
        """Whether so much is too much now."""
        return self.used + amount > self.limit + _SLACK


@dataclass(frozen=True, slots=True)
class Standing:
    """All limits of a tenant at a moment. None: no such limit."""

    requests: Meter | None
    tokens: Meter | None

    @classmethod
    def of(cls, limits: Limits, used: Amounts) -> Standing:
        """When so much is used."""
        pairs = zip((limits.requests, limits.tokens), used, strict=True)
        return cls(
            *(None if n is None else Meter(n, amount, limits.period_s) for n, amount in pairs)
        )

    @property
    def used(self) -> Amounts:
        """What a counter keeps."""
        return Amounts(*(meter.used if meter else 0.0 for meter in (self.requests, self.tokens)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What taking came to: after a refusal nothing was taken."""

    standing: Standing
    refused_by: Dimension | None = None  # of both the one that takes longer to pass


def take(limits: Limits, used: Amounts, elapsed_s: float, amounts: Amounts) -> Answer:
    """Take from all limits or from none, `elapsed_s` after so much was used.

    Amounts below 0 are given back: nobody gets more than there is. 0 only looks.
    """
    then = Standing.of(limits, used)
    now = [meter and meter.after(elapsed_s) for meter in (then.requests, then.tokens)]
    refusals = [
        (meter.wait_s(amount), dimension)
        for meter, amount, dimension in zip(now, amounts, Dimension, strict=True)
        if meter and meter.refuses(amount)
    ]
    if refusals:
        return Answer(Standing(*now), max(refusals, key=itemgetter(0))[1])
    taken = [
        meter and replace(meter, used=max(0.0, meter.used + amount))
        for meter, amount in zip(now, amounts, strict=True)
    ]
    return Answer(Standing(*taken))


def take_arguments(limits: Limits, amounts: Amounts) -> tuple[Any, ...]:
    """The arguments of take.lua; its key is keys.rate_limits."""
    return (round(limits.period_s * 1e6), limits.requests or 0, limits.tokens or 0, *amounts)


def parse_answer(limits: Limits, reply: Any) -> Answer:
    """What take.lua says."""
    refused, *used = reply
    dimension = tuple(Dimension)[refused - 1] if refused else None
    return Answer(Standing.of(limits, Amounts(*map(float, used))), dimension)
