"""The plugin's answers, stored where the script `hawse-credential` can reuse them without starting Python.

Each question has a file of four lines: the expiry and the machine's boot time by the same clock, both in
epoch seconds; the version of the logins file that was read, so that an answer serves no other login; the
complete question; the answer.

A shell can't hash a question without another process. So the file's name has the question's server and its
length. Different clients of one cluster, such as kubectl and an SDK, ask questions of different lengths.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from proxy.agent.local.account import logins_path
from proxy.agent.local.files import cache_folder
from proxy.agent.token.cache import store

# Drift of `machine_started_s` that is not a clock change: rounding, and a clock that is slewed in small
# steps.
CLOCK_DRIFT_MAX_S = 2


def machine_started_s() -> float:
    """Return the boot time by this machine's clock. A changed clock or a reboot changes the value."""
    try:
        # A shell can read this file too. A container may have an uptime of its own, which no system call
        # shows.
        with open("/proc/uptime", encoding="ascii") as file:
            up_s = float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        up_s = time.monotonic()
    return time.time() - up_s


def logins_version(environment: Mapping[str, str]) -> str:
    """Identify the current logins file: each change of the file changes the string. "" without a file."""
    try:
        status = os.stat(logins_path(environment))
    except OSError:
        return ""
    seconds, nanoseconds = divmod(status.st_ctime_ns, 10**9)
    # In the format of stat(1), both coreutils and busybox.
    changed = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{status.st_dev}:{status.st_ino}:{changed}.{nanoseconds:09d} +0000"


def store_answer(
    environment: Mapping[str, str],
    server: str,
    *,
    until_s: float,
    started_s: float,
    login: str,
    question: str,
    answer: str,
) -> None:
    """Store the answer for a question about `server`, a cluster's URL. Does nothing if that is not possible.

    `login` is the version of the logins file before it was read. Text that a shell can't read back is
    skipped.
    """
    if not (login and _plain(question) and _plain(answer)) or "\\" in answer:
        return
    server = server.removeprefix("https://")
    name = f"{server.partition('/')[0]}_{server.rpartition('/')[2]}_{len(question)}"
    lines = (f"{int(until_s)} {int(started_s)}", login, question, answer, "")
    store(answers_folder(environment), name, "\n".join(lines).encode("ascii"))


def answers_folder(environment: Mapping[str, str]) -> str:
    """Return the folder of the stored answers."""
    return os.path.join(cache_folder(environment), "answers")


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
