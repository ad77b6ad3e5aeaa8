from __future__ import annotations

import os
import select
import sys

import pytest

from sandbox.demo import program
from sandbox.demo.processes import DemoError
from sandbox.demo.program import Program, first_line

# A killed process closes its files before it has ended.
ENDS_WITHIN_S = 10.0

PYTHON = Program((sys.executable, "-c"), {"COLOUR": "green"})


def test_a_program_runs_to_its_end_with_its_own_environment() -> None:
    script = (
        "import os, sys; print(os.environ['COLOUR'], input()); print('a word', file=sys.stderr); sys.exit(3)"
    )
    assert PYTHON.run(script, stdin="grass\n", exit_code=3) == ("green grass\n", "a word\n")


def test_another_exit_code_is_told_with_the_last_line() -> None:
    with pytest.raises(DemoError, match=r"ended with exit code 1 instead of 0: the reason$"):
        PYTHON.run("raise SystemExit('above it\\nthe reason\\n')")


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "COMMAND_DEADLINE_S", 0.1)
    with pytest.raises(DemoError, match="has not ended in 0 s"):
        PYTHON.run("import time; time.sleep(600)")
    with (
        PYTHON.started("import time; time.sleep(600)") as process,
        pytest.raises(DemoError, match="no output"),
    ):
        first_line(process)


def test_leaving_the_block_ends_the_program_and_what_it_started() -> None:
    starts = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    with PYTHON.started(starts, stdin=program.subprocess.PIPE) as process:
        child = os.pidfd_open(int(first_line(process)))
    assert process.returncode == -9
    # Readable as soon as the child has ended, whether or not init has reaped it.
    assert select.select([child], [], [], ENDS_WITHIN_S)[0]
    os.close(child)


def test_one_that_ends_without_output_is_told_by_its_last_words() -> None:
    with PYTHON.started("raise SystemExit('no such pod')") as process:
        with pytest.raises(DemoError, match="it ended without output: no such pod"):
            first_line(process)


def test_a_program_may_print_to_the_demos_own_output(capfd: pytest.CaptureFixture[str]) -> None:
    PYTHON.print("print('a table')")
    assert capfd.readouterr().out == "a table\n"
    with pytest.raises(DemoError, match="ended with exit code 1 instead of 0: no trail"):
        PYTHON.print("raise SystemExit('no trail')")
