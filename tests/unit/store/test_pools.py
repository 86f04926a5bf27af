from __future__ import annotations

import pytest

from store.pools import connection_options


@pytest.mark.parametrize("plans_once", [False, True])
def test_a_connection_plans_once_if_it_is_asked_to(plans_once: bool) -> None:
    options = connection_options("test", plans_once=plans_once)

    assert ("plan_cache_mode=force_generic_plan" in options["options"]) is plans_once
    assert (options.get("prepare_threshold") == 0) is plans_once


def test_a_peer_that_vanished_is_noticed_within_fifteen_seconds() -> None:
    options = connection_options("test")

    quiet_s = options["keepalives_interval"] * options["keepalives_count"]
    assert options["keepalives_idle"] + quiet_s == 15
    assert options["tcp_user_timeout"] == 15_000
