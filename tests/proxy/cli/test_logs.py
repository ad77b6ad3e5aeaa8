from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.logs import JSONFormatter, is_json
from proxy.cli.relay import relay


def line_of(message: str, *arguments: object, **extra: str) -> dict[str, str]:
    """Parse a line of the log, which must be printable ASCII."""
    record = logging.getLogger("hawse.test").makeRecord(
        "hawse.test", logging.WARNING, __file__, 1, message, arguments, None, extra=extra
    )
    text = JSONFormatter().format(record)
    assert text.isascii()
    assert text.isprintable()
    found: dict[str, str] = json.loads(text)
    return found


def test_a_line_has_time_level_logger_and_text() -> None:
    line = line_of("%d calls, %s", 3, "cut")
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "WARNING", "logger": "hawse.test", "msg": "3 calls, cut"}


def test_ids_are_fields_and_nothing_else_is() -> None:
    line = line_of("x", cluster="prod", agent="robot", eid="e1", boot="b1", token="hws_secret")
    assert {name: line[name] for name in ("cluster", "agent", "eid", "boot")} == {
        "cluster": "prod",
        "agent": "robot",
        "eid": "e1",
        "boot": "b1",
    }
    assert "hws_secret" not in str(line)


@pytest.mark.parametrize("text", ["a\nb\r", "\x1b[2J", "\x00", "\x7f", "\x85\x9b", "\u2028", "ü€😀"])
def test_no_character_of_a_text_can_end_the_line_or_steer_a_terminal(text: str) -> None:
    assert line_of("%s", text)["msg"] == text


def test_half_a_character_is_spelt_out() -> None:
    assert line_of("%s", "\udcff")["msg"] == "\\udcff"


@pytest.mark.parametrize(
    ("words", "variable", "found"),
    [
        ("--log-format json", "", True),
        ("--bogus --log-format=json", "", True),
        ("--log-format json --log-format text", "", False),
        ("--log-format text", "json", False),
        ("-v", "json", True),
        ("--log-format", "json", False),
        ("-- hawse --log-format json", "", False),
    ],
)
def test_a_command_line_is_asked_for_its_form_before_it_is_parsed(
    words: str, variable: str, found: bool
) -> None:
    assert is_json(words.split(), {"HAWSE_HUB_LOG_FORMAT": variable}, "HAWSE_HUB_LOG_FORMAT") is found


def logged(*argv: str, **environment: str) -> tuple[int, list[dict[str, str]]]:
    """Run a command to its end; each line of its stderr must be a JSON object."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")}
    done = subprocess.run(argv, capture_output=True, env={**inherited, **environment}, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


def test_what_ends_a_command_before_its_log_is_a_line_too(tmp_path: Path) -> None:
    code, (line,) = logged("hawse", "hub", "--log-format", "json", "--bogus")
    assert (code, line["level"]) == (2, "ERROR")
    assert line["msg"].startswith("No such option '--bogus'")
    code, (line,) = logged("hawse", "relay", HAWSE_RELAY_LOG_FORMAT="json")
    assert (code, "the relay cannot run: it has no configuration" in line["msg"]) == (1, True)
    code, (line,) = logged("hawse", "connect", "--log-format=json", XDG_CONFIG_HOME=str(tmp_path))
    assert (code, line["msg"]) == (1, "not logged in: run `hawse login --hub URL`")


def test_the_file_can_say_the_form_of_its_own_faults(tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text('log_format = "json"\norg = "system"\n')
    code, (line,) = logged("hawse", "hub", "--config", str(config))
    assert (code, line["msg"]) == (1, "the hub's configuration has faults:\norg: org 'system' is reserved")


def test_a_form_that_there_is_not_is_a_fault_of_the_configuration() -> None:
    env = {"HAWSE_RELAY_LOG_FORMAT": "xml", "HAWSE_RELAY_CLUSTER_ID": "c1"}
    result = CliRunner().invoke(relay, ["--check"], env=env)
    assert 'log_format: expected "text" or "json"' in result.stderr


PRINT_BY_OTHER_WAYS = """
import gc, threading, warnings
from proxy.cli.logs import configure_logging

configure_logging(verbose=False, log_format="json")
warnings.warn("something\\nold")

def fail():
    raise ValueError("in a thread")

thread = threading.Thread(target=fail)
thread.start()
thread.join()

class Unraisable:
    def __del__(self):
        raise ValueError("nobody can catch it")

Unraisable()
gc.collect()
raise ExceptionGroup("both", [ValueError("one"), OSError("two")])
"""


def test_what_python_prints_by_itself_is_a_line_too() -> None:
    code, lines = logged(sys.executable, "-c", PRINT_BY_OTHER_WAYS, PYTHONPATH=".")
    warned, in_thread, unraisable, uncaught = lines
    assert code == 1
    assert (warned["logger"], warned["level"]) == ("py.warnings", "WARNING")
    assert "something\nold" in warned["msg"]
    assert "ValueError: in a thread" in in_thread["traceback"]
    assert "ValueError: nobody can catch it" in unraisable["traceback"]
    assert uncaught["level"] == "CRITICAL"
    assert "OSError: two" in uncaught["traceback"]
