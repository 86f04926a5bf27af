"""Where nothing may be sent."""

from __future__ import annotations

import pytest

from tasks.webhook_urls import MAX_URL, RefusedAddress, UrlPolicy

POLICY = UrlPolicy()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hooks?kind=a%20b",
        "https://example.com:443/",
        "https://example.com:8443/",
        "https://example.com/" + "a" * (MAX_URL - len("https://example.com/")),
        f"https://{'a.' * 122}example.b/",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "https://xn--bcher-kva.example/",
        f"https://{'a' * 63}.Example_1.example./",
    ],
)
def test_urls_of_the_open_internet_are_taken(url: str) -> None:
    POLICY.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "http://example.com",
        "ftp://example.com",
        "https://",
        "https:///path",
        "https://user@example.com",
        "https://user:pass@example.com",
        "https://:pass@example.com",
        "https://@example.com",
        "https://example.com/#part",
        "https://example.com:22/",
        "https://example.com:99999/",
        "https://example.com:port/",
        "https://[::1",
        "https://exa mple.com",
        "https://example.com/a b",
        "https://bücher.example/",
        "https://example.com/bücher",
        "https://example.com/\x7f",
        "https://example.com/\r\nHost: other",
        "https://example.com/" + "a" * (MAX_URL + 1 - len("https://example.com/")),
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 122}example.bc/",
        "https://a..example/",
        "https://exam%ple/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(RefusedAddress):
        POLICY.check_url(url)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "172.16.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "192.168.0.1",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:8.8.8.8",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001:0:1::1",
        "2001:db8::1",
        "200::1",
        "2002:7f00:1::",
        "3fff::1",
        "4000::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1111%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_that_not_everybody_reaches_are_refused(address: str) -> None:
    with pytest.raises(RefusedAddress):
        POLICY.check_address(address)


def test_a_private_platform_sends_anywhere() -> None:
    policy = UrlPolicy(allow_private=True)

    policy.check_url("http://127.0.0.1:9000/hook")
    policy.check_address("127.0.0.1")
    for url in ("ftp://127.0.0.1/", "http://user@127.0.0.1/", "http://"):
        with pytest.raises(RefusedAddress):
            policy.check_url(url)
