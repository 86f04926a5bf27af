"""One process of a test cluster, and the tenant a test acts for."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from uuid import UUID

from cli.stack.child import Child, tail
from cli.stack.processes import Platform, ProcessSpec
from cli.stack.readiness import wait_ready
from tests.support import warm

_STOP_GRACE_S = 40.0  # an inference worker drains for up to 25 s


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant with credit and one API key."""

    id: UUID
    name: str
    api_key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}


class Member:
    """One process of the cluster. It may be started again and again, on the same port."""

    def __init__(self, platform: Platform, spec: ProcessSpec) -> None:
        self._platform = platform
        self.spec = spec
        self._child: Child | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def child(self) -> Child:
        assert self._child is not None, f"{self.name} was never started"
        return self._child

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def url(self) -> str:
        assert self.spec.url is not None, f"{self.name} has no port"
        return self.spec.url

    @property
    def is_alive(self) -> bool:
        return self._child is not None and self._child.is_alive

    @property
    def log(self) -> str:
        """The last lines it wrote."""
        return tail(self.spec.log_path, 60)

    def start(self, *, wait: bool = True) -> None:
        if not self.is_alive:
            self._child = warm.spawn(self.spec)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Raises StackError with the end of its log if it ends or takes too long."""
        wait_ready(self._platform, self.spec, self.child)

    def stop(self, *, grace_s: float = _STOP_GRACE_S) -> bool:
        """As an operator would: SIGTERM, drain. True if it ended by itself in time."""
        return self._child is None or self._child.stop(signal.SIGTERM, grace_s=grace_s)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.child.send(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, with everything it started. It has ended when this returns."""
        if self._child is not None:
            self._child.kill()

    def pause(self) -> None:
        """SIGSTOP: alive for the kernel, dead for everyone else."""
        self.child.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.child.send(signal.SIGCONT)

    def restart(self, *, wait: bool = True) -> None:
        self.stop()
        self.start(wait=wait)
