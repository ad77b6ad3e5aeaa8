"""One chain on the cluster for all the cases; without a cluster there are no cases."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.demo.cluster import Administrator
from sandbox.demo.processes import DemoError
from tests.e2e.cluster import KUBECONFIG, missing, running_chain_on, served_by
from tests.system.world import World

# The kubectl and hawse of this environment, also for the questions at collection.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
collect_ignore_glob = [] if KUBECONFIG else ["test_*.py"]
# A real cluster pulls images and starts pods before a case can begin.
CASE_TIMEOUT_S = 300
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the cluster cannot do, as its own discovery says; the summary names it."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    if not ours:
        return
    try:
        served = served_by(Administrator(Path(KUBECONFIG)))
    except DemoError as error:
        pytest.exit(f"HAWSE_E2E_KUBECONFIG: {error}", returncode=2)
    left_out = config.stash.setdefault(LEFT_OUT, {})
    dropped = []
    for item in ours:
        item.add_marker(pytest.mark.kubectl)
        item.add_marker(pytest.mark.timeout(CASE_TIMEOUT_S))
        for feature in missing(getattr(item, "function", None), served)[:1]:
            left_out[feature] = left_out.get(feature, 0) + 1
            dropped.append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for feature, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"left out: {count} that need {feature}, which this cluster has not")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # As Ctrl-C does, so that the cluster is cleaned up.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_chain_on(Path(KUBECONFIG).resolve(), tmp_path_factory.mktemp("e2e")) as running:
            # Denied by a new hub, whatever RBAC says; here it is about what RBAC allows.
            running.admin("policy", "disable", "guard", "serviceaccount-tokens", "csr-approval")
            yield running
    except DemoError as error:
        pytest.exit(str(error), returncode=2)
    finally:
        signal.signal(signal.SIGTERM, before)
