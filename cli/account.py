"""usage, models, estimate: what a tenant may use, what it costs, and what it did cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.client import (
    DEFAULT_MODEL,
    MaxTokensOption,
    MessagesOption,
    ModelOption,
    PromptArgument,
    connect,
    job_params,
)
from cli.help_texts import JOBS, examples
from cli.money import from_micros
from cli.output import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from millrace import Estimate

_ESTIMATE = examples('millrace estimate "What is a lease?" --max-tokens 100')
_DAY_S = 24 * 60 * 60
MAX_DAYS = 3_650
_TOKENS = ("input_tokens", "cached_tokens", "output_tokens")


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=JOBS)(models)
    app.command(rich_help_panel=JOBS, epilog=_ESTIMATE)(estimate)
    app.command(rich_help_panel=JOBS)(usage)


def usage(
    *,
    days: Annotated[int, typer.Option(min=1, max=MAX_DAYS, help="How many, up to now.")] = 30,
    is_json: JsonOption = False,
) -> None:
    """Show tokens and money by model and tier, and what is left."""
    with connect() as client:
        report = client.usage.get(start_time=int(time.time()) - days * _DAY_S)
    if is_json:
        print_json(report.raw)
        return
    columns = ("model", "tier", "jobs", "input", "cached", "output", report.currency)
    lines = [{**line, "tier": line["service_tier"]} for line in report.data]
    total = {"model": "total", "tier": "", **report.totals}
    print_table(
        columns,
        [
            (
                line["model"],
                line["tier"],
                line["num_jobs"],
                *(line[name] for name in _TOKENS),
                from_micros(line["amount_micros"]),
            )
            for line in (*lines, total)
        ],
    )
    amounts = (report.balance_micros, report.held_micros, report.available_micros)
    balance, held, available = map(from_micros, amounts)
    print(f"balance {balance}, held {held}, available {available} {report.currency}")


def models(*, is_json: JsonOption = False) -> None:
    """List models, with prices per million tokens (input / cached / output)."""
    with connect() as client:
        found = client.models.list()
    if is_json:
        print_json([model.raw for model in found])
        return
    tiers = list(dict.fromkeys(tier for model in found for tier in model.pricing["tiers"]))
    print_table(
        ("model", "context", "output", *tiers, "currency"),
        [
            (
                model.id,
                model.context_length,
                model.max_output_tokens,
                *(_price(model.pricing["tiers"].get(tier)) for tier in tiers),
                model.pricing["currency"],
            )
            for model in found
        ],
    )


def estimate(
    prompt: PromptArgument = None,
    *,
    messages: MessagesOption = None,
    model: ModelOption = DEFAULT_MODEL,
    max_tokens: MaxTokensOption = None,
    is_json: JsonOption = False,
) -> None:
    """Say what a request would cost, tier by tier, without submitting it."""
    params = job_params(prompt, messages, model=model, max_tokens=max_tokens)
    with connect() as client:
        found = client.estimate(**params)
    if is_json:
        print_json(found.raw)
    else:
        _show(found)


def _show(found: Estimate) -> None:
    print(f"{found.model}: {found.input_tokens} input tokens")
    if lengths := found.output_tokens:
        basis = f", by {lengths.samples} answers ({lengths.source})" if lengths.samples else ""
        print(f"output tokens: {lengths.p50} likely, {lengths.p90} for one in ten{basis}")
    for name, eta_s in (("start", found.start_eta_s), ("end", found.finish_eta_s)):
        if eta_s is not None:
            print(f"{name} in {eta_s:.0f} s")
    print_table(
        ("tier", "usual", "long", "at most", "currency"),
        [
            (tier, *map(_amount, (c.p50_micros, c.p90_micros, c.max_micros)), found.currency)
            for tier, c in found.cost.items()
        ],
    )


def _amount(micros: int | None) -> str:
    return "?" if micros is None else from_micros(micros)


def _price(price: dict[str, int] | None) -> str:
    if price is None:
        return ""
    names = ("input_micros", "cached_micros", "output_micros")
    return " / ".join(from_micros(price[name]) for name in names)
