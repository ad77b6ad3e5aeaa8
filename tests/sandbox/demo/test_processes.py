from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.demo import processes
from sandbox.demo.hubs import HubProcess
from sandbox.demo.processes import Daemon, Daemons, DemoError, free_port, undisturbed

WAITS = "import time; print('it is up', flush=True); time.sleep(600)"


def test_a_process_is_awaited_by_what_it_says_and_ends_with_the_block(tmp_path: Path) -> None:
    with Daemons(tmp_path) as daemons:
        daemon = daemons.start("one", [sys.executable, "-c", WAITS])
        assert daemon.wait_for("is up") == "it is up"
        daemons.check()
    assert daemon.process.poll() == -signal.SIGTERM


def test_one_that_ends_early_is_told_by_its_last_line(tmp_path: Path) -> None:
    with Daemons(tmp_path) as daemons:
        daemon = daemons.start("one", [sys.executable, "-c", "print('why\\n'); raise SystemExit(3)"])
        with pytest.raises(DemoError, match="one ended with exit code 3: why"):
            daemon.wait_for("is up")
        with pytest.raises(DemoError, match="one ended with exit code 3"):
            daemons.check()


def test_the_end_of_a_hub_that_was_started_again_is_no_error(tmp_path: Path) -> None:
    hub = HubProcess("hub-1", tmp_path / "hub-1", tmp_path / "hub-1.toml", 1, 2, 3)
    with Daemons(tmp_path) as daemons:
        hub.launch(daemons, argv=[sys.executable, "-c", WAITS])
        hub.kill()
        with pytest.raises(DemoError, match="hub-1-1 ended"):
            daemons.check()
        hub.launch(daemons, argv=[sys.executable, "-c", WAITS])
        daemons.check()
        hub.kill()
        with pytest.raises(DemoError, match="hub-1-2 ended"):
            daemons.check()


def test_all_end_though_the_block_fails(tmp_path: Path) -> None:
    started: list[Daemon] = []

    def fail() -> None:
        with Daemons(tmp_path) as daemons:
            started.extend(daemons.start(name, [sys.executable, "-c", WAITS]) for name in ("one", "two"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [daemon.process.poll() is not None for daemon in started] == [True, True]


def test_an_interrupt_waits_until_the_cleaning_up_is_done() -> None:
    done = []

    def clean_up() -> None:
        with undisturbed():
            # Sent to this thread: pytest's worker processes have other threads, which the demo does not.
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    assert done == ["cleaned up"]


def test_a_taken_port_is_not_given_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_a_port_is_none_that_linux_gives_to_outgoing_connections() -> None:
    assert all(1024 < free_port() < 32_768 for _ in range(20))


def test_a_port_is_given_to_one_process_though_it_does_not_listen_yet() -> None:
    chooses = "from sandbox.demo.processes import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", chooses], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert free_port(port) != port
        other.communicate("\n")
    assert free_port(port) == port


def test_no_more_ports_are_reserved_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PORTS_RESERVED_MAX", 4)
    ports = [free_port() for _ in range(20)]
    assert len(set(ports[-4:])) == 4
    assert list(processes._reserved) == ports[-4:]
