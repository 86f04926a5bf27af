"""A real browser: a page of another origin asks, reads a stream, and reads an error."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PAGE = Path(__file__).parent / "browser/page.html"
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
)
LATE_S = 60

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


class Pages(ThreadingHTTPServer):
    """Serves the page, and takes what the page has found."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.found: queue.Queue[Any] = queue.Queue()

    def origin(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        self._answer(PAGE.read_bytes() if self.path.startswith("/?") else b"")

    def do_POST(self) -> None:
        self.server.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with Pages() as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        yield pages
        pages.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def api(cluster: Cluster, pages: Pages) -> Iterator[str]:
    """A replica that this page may call."""
    member = cluster.add_api(environment={"MILLRACE_CORS_ORIGINS": pages.origin()})
    yield member.url
    cluster.apis.remove(member)
    member.kill()


def _show(pages: Pages, url: str, profile: Path) -> Any:
    """What the page has found."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", url]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return pages.found.get(timeout=LATE_S)
    finally:
        browser.terminate()
        browser.wait()


def test_a_page_that_may_call_reads_answers_streams_and_errors(
    pages: Pages, api: str, tenant: Tenant, tmp_path: Path
) -> None:
    query = urlencode({"api": api, "key": tenant.api_key})

    found = _show(pages, f"{pages.origin()}/?{query}", tmp_path)

    answer, stream, error = found["answer"], found["stream"], found["error"]
    assert (answer["status"], bool(answer["job"])) == (200, True)
    assert "tier" in answer["text"]
    assert stream["type"].startswith("text/event-stream")
    assert (stream["text"], stream["last"]) == (answer["text"], "[DONE]")
    assert (error["status"], error["code"]) == (400, "invalid_request")
    assert (error["param"], bool(error["request"])) == ("model", True)


def test_a_page_of_another_origin_reads_nothing(
    pages: Pages, api: str, tenant: Tenant, tmp_path: Path
) -> None:
    query = urlencode({"api": api, "key": tenant.api_key})

    found = _show(pages, f"{pages.origin('localhost')}/?{query}", tmp_path)

    assert found == dict.fromkeys(("answer", "stream", "error"), "TypeError")
