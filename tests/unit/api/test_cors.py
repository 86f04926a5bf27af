from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from api.cors import CorsSettings, with_cors


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        (
            "https://A.example/, http://localhost:3000",
            ("https://a.example", "http://localhost:3000"),
        ),
        ("null app://x", ("null", "app://x")),
    ],
)
def test_origins_are_listed(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MILLRACE_CORS_ORIGINS", text)

    assert CorsSettings().cors_origins == origins


@pytest.mark.parametrize("text", ["example.com", "https://a.example/path", "https://*.a.example"])
def test_what_no_browser_sends_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MILLRACE_CORS_ORIGINS", text)

    with pytest.raises(ValidationError, match="is no origin"):
        CorsSettings()


async def test_any_page_may_call_if_all_may() -> None:
    transport = httpx.ASGITransport(with_cors(PlainTextResponse("x"), ("*",)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.get("/", headers={"Origin": "https://a.example"})

    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
