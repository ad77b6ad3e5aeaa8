"""A running `hawse connect`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from tests.system.world import NAMESPACE, SPDY, Result, run


@attrs.frozen
class Running:
    """A `hawse connect`, and the kubeconfig that it wrote."""

    process: subprocess.Popen[str]
    kubeconfig: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *args: str, spdy: bool = False) -> Result:
        environment = {**self.environment, **(SPDY if spdy else {})}
        return run(["kubectl", f"--namespace={NAMESPACE}", *args], environment)


@contextlib.contextmanager
def connected(environment: Mapping[str, str], *args: str) -> Iterator[Running]:
    process = subprocess.Popen(
        ["hawse", "connect", *args],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        path = process.stdout.readline().strip()
        assert path, "it did not start"
        yield Running(process, Path(path))
    finally:
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert "fault of ours" not in told
