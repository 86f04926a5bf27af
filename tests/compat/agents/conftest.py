"""Agents' clients, in the second virtual environment of `make test-compat`.

Beside the demo models there is one with a short context, which prompts are too long for soon.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.stack.files import ROOT

SHORT_MODEL = "demo-short"
SHORT_CONTEXT = 64


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = (ROOT / "catalog.toml").read_text().replace('"models/', f'"{ROOT}/models/')
    mini = models[models.index("[models.demo-mini]") :]
    short = mini.replace("demo-mini]", f"{SHORT_MODEL}]").replace("demo-mini.", f"{SHORT_MODEL}.")
    file = tmp_path_factory.mktemp("catalog") / "catalog.toml"
    file.write_text(f"{models}\n{short.replace('= 4096', f'= {SHORT_CONTEXT}')}")
    return file
