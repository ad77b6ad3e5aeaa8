from __future__ import annotations

import pytest
import trio

from proxy.cli.errors import CommandError
from proxy.cli.service import run_service


async def fail_inside(failures: list[Exception]) -> int:
    """Fail as a service does, whose tasks run in nested nurseries."""

    async def fail(failure: Exception) -> None:
        raise failure

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            for failure in failures:
                nursery.start_soon(fail, failure)
        outer.cancel_scope.cancel()
    return 0


def test_a_known_failure_of_any_task_is_told_in_one_line() -> None:
    failures: list[Exception] = [OSError("the disk is full")]
    with pytest.raises(CommandError, match=r"^the hub cannot run: the disk is full$"):
        run_service(fail_inside, failures, "hub", (OSError, KeyError))


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        run_service(fail_inside, [OSError("the disk is full"), ZeroDivisionError()], "hub", (OSError,))


def test_a_service_that_ends_by_itself_ends_the_command() -> None:
    run_service(fail_inside, [], "hub", (OSError,))


def test_a_service_that_ends_by_ctrl_c_gives_the_status() -> None:
    async def interrupted(_: None) -> int:
        await trio.lowlevel.checkpoint()
        return 130

    with pytest.raises(SystemExit) as ended:
        run_service(interrupted, None, "hub", (OSError,))
    assert ended.value.code == 130


def test_ctrl_c_is_no_fault_of_a_service() -> None:
    async def interrupted(_: None) -> int:
        async with trio.open_nursery():
            async with trio.open_nursery():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_service(interrupted, None, "hub", (OSError,))
