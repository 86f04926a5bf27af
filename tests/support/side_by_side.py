"""What pytest-xdist gives to one of its processes: a file, or files that share a cluster.

Its own `--dist loadgroup` groups nothing under pytest 9.2, where the id of a test can't be changed.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# The first that a test's id begins with.
_TOGETHER = {
    "tests/compat/": "the demo models",
    "tests/e2e/test_choices.py": "the common cluster",
    "tests/e2e/test_faults.py": "the common cluster",
    "tests/e2e/test_job_path.py": "the common cluster",
    "tests/integration/cli/test_chat_on_a_terminal.py": "the cluster of commands",
    "tests/integration/cli/test_user_commands.py": "the cluster of commands",
}
# Long, and their tests share nothing that is dear to make.
_SPREAD = ("tests/unit/engine/test_structured_text.py", "tests/unit/engine/test_sampler.py")


def unit_of(test: str) -> str:
    """Tests of one unit run one after another in one process."""
    if test.startswith(_SPREAD):
        return test
    together = (unit for start, unit in _TOGETHER.items() if test.startswith(start))
    return next(together, test.partition("::")[0])


class UnitScheduling(LoadScopeScheduling):
    """Gives out units in the order of collection: the long ones come first."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
