"""A sandbox as a separate process and the real kubectl, shared by all tests of a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from sandbox.processes import Registry, open_registry
from tests.sandbox.world import World

DEADLINE_S = 30.0


@attrs.frozen
class Outcome:
    """The results of a command."""

    code: int
    out: str
    err: str


@attrs.frozen
class Cluster:
    """A running sandbox, and kubectl with its administrator's credentials."""

    folder: Path
    server: str

    @property
    def relay_token(self) -> str:
        return (self.folder / "relay-token").read_text()

    def argv(self, *args: str, kubeconfig: str = "admin.kubeconfig") -> list[str]:
        return [
            str(Path(sys.executable).with_name("kubectl")),
            f"--kubeconfig={self.folder / kubeconfig}",
            *args,
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder / "home")}

    def run(self, *args: str, stdin: str = "", kubeconfig: str = "admin.kubeconfig") -> Outcome:
        """Run kubectl to its end."""
        done = subprocess.run(
            self.argv(*args, kubeconfig=kubeconfig),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=DEADLINE_S,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def kubectl(self, *args: str, stdin: str | Mapping[str, object] = "") -> str:
        """Run kubectl, which must succeed without warnings, and return its output."""
        text = stdin if isinstance(stdin, str) else json.dumps(stdin)
        outcome = self.run(*args, stdin=text)
        assert (outcome.code, outcome.err) == (0, ""), f"kubectl {' '.join(args)}: {outcome.err}"
        return outcome.out

    def refused(self, *args: str, stdin: str | Mapping[str, object] = "") -> str:
        """Run kubectl, which must fail, and return its error message."""
        text = stdin if isinstance(stdin, str) else json.dumps(stdin)
        outcome = self.run(*args, stdin=text)
        assert outcome.code == 1, f"kubectl {' '.join(args)}: {outcome.out}{outcome.err}"
        return outcome.err

    def audit(self) -> list[dict[str, object]]:
        """Return the sandbox's own audit log."""
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "--dir", folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    word, server = process.stdout.readline().split()
    assert word == "ready"
    yield Cluster(folder, server)
    process.terminate()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for one test, deleted afterwards with its contents."""
    name = "t-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50].strip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    """The pods' processes; none of them is left at the end."""
    async with open_registry(tmp_path / "pods") as running:
        yield running


@pytest.fixture
def world(registry: Registry) -> World:
    return World.make(registry)
