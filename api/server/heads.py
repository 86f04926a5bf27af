"""What of a request's head must not be served, and where it goes to (RFC 9112). Pure.

The parser refuses by itself what it can't read in one way alone: two lengths, a length beside
chunks, line ends of other kinds, folded lines. These are the rules that it leaves to its user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import httptools
from uvicorn._types import HTTPScope

from api.server.bounds import MAX_HEAD_BYTES
from tasks.errors import (
    HeadersTooLarge,
    HttpVersionUnsupported,
    InvalidRequest,
    MethodNotImplemented,
    ServiceError,
)

ASTERISK = "*"  # the path of OPTIONS for the server as a whole

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-fv:.]+\])(?::[0-9]*)?")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})
_BAD_VERSION = "Invalid HTTP version"  # the parser's word for it
_REQUEST_LINE = re.compile(rb"\r?\n?[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^ \r\n]+ HTTP/")


def read_head(scope: HTTPScope, method: bytes, version: str, url: bytes) -> None:
    """Complete an ASGI scope that has its headers. Raises a ServiceError, after which nothing of
    the connection can be trusted.
    """
    headers = scope["headers"]
    if len(url) + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HeadersTooLarge
    _check(method, version, headers)
    path, raw_path, query = _target(method, url)
    scope["method"], scope["http_version"] = method.decode("ascii"), version
    scope["path"] = scope["root_path"] + path
    scope["raw_path"] = scope["root_path"].encode("ascii") + raw_path
    scope["query_string"] = query


def without_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head that says how the body ends, as a head with these headers does, and no more."""
    framing = [b"%s: %s" % header for header in headers if header[0] in _FRAMING]
    lines = [line for line in framing if b"upgrade" not in line.lower()]
    return b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""])


def _check(method: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    if version not in ("1.0", "1.1"):
        raise HttpVersionUnsupported
    if method == b"CONNECT":  # what follows would belong to a tunnel
        raise MethodNotImplemented
    hosts, codings = [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    _check_hosts(hosts, version)
    if codings:
        _check_codings(codings, version)


def _check_hosts(hosts: list[bytes], version: str) -> None:
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise InvalidRequest("A request must have one Host header.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise InvalidRequest("The Host header is invalid.")


def _check_codings(codings: list[bytes], version: str) -> None:
    if version == "1.0":  # whoever passed it on may have seen another body
        raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding.")
    coding = b",".join(codings).strip(b" \t,").lower()
    if coding.rpartition(b",")[2].strip(b" \t") != b"chunked":
        raise InvalidRequest("The last Transfer-Encoding must be 'chunked'.")
    if coding != b"chunked":
        raise MethodNotImplemented("The only Transfer-Encoding that is taken is 'chunked'.")


def _target(method: bytes, url: bytes) -> tuple[str, bytes, bytes]:
    """(Path, the path as it was sent, query)."""
    try:
        parsed = httptools.parse_url(url)
        raw_path = parsed.path or b"/"  # http://host alone
        path = raw_path.decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        raise InvalidRequest("The request's target is invalid.") from None
    if path == ASTERISK and method != b"OPTIONS":
        raise InvalidRequest("The target '*' is for OPTIONS alone.")
    return unquote(path) if "%" in path else path, raw_path, parsed.query or b""


def refusal_of(error: BaseException | None, received: bytes) -> ServiceError:
    """Of bytes that the parser couldn't read."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(received):
        return MethodNotImplemented()  # else it isn't HTTP
    if str(error) == _BAD_VERSION:
        return HttpVersionUnsupported()
    return InvalidRequest("Invalid HTTP request received.")
