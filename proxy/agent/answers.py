"""What the plugin has answered, where `hawse-credential` finds it again without starting Python.

A file for each cluster, of four lines: until when it may be given, and when the machine had started by the
same clock, in epoch seconds; which file of logins the agent was found in, so that no other login is answered
with it; the question, whole; the answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress

from proxy.agent.account import logins_path
from proxy.agent.errors import NotWritableError
from proxy.agent.files import cache_folder, write_private

# How far the time of `machine_started_s` may move by itself: by rounding, and by a clock set in small steps.
SET_MAX_S = 2


def machine_started_s() -> float:
    """When this machine started, by its clock: another time after that was set, or after a restart."""
    try:
        # A shell can read this too; and a container may be shown one of its own, which no system call tells.
        with open("/proc/uptime", encoding="ascii") as file:
            up_s = float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        up_s = time.monotonic()
    return time.time() - up_s


def known_login(environment: Mapping[str, str]) -> str:
    """Which file of logins is there now; another string after any change of it, and "" when there is none."""
    try:
        status = os.stat(logins_path(environment))
    except OSError:
        return ""
    seconds, nanoseconds = divmod(status.st_ctime_ns, 10**9)
    # As stat(1) writes it, with coreutils and with busybox.
    changed = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{status.st_dev}:{status.st_ino}:{changed}.{nanoseconds:09d} +0000"


def remember(
    environment: Mapping[str, str],
    server: str,
    *,
    until_s: float,
    started_s: float,
    login: str,
    question: str,
    answer: str,
) -> None:
    """Keep the answer about `server`, a cluster's URL, where that can be written.

    `login` is what was known before the logins were read. What a shell could not read back is not kept.
    """
    if not (login and _plain(question) and _plain(answer)) or "\\" in answer:
        return
    path = os.path.join(cache_folder(environment), "tokens", server.removeprefix("https://").rstrip("/"))
    lines = (f"{int(until_s)} {int(started_s)}", login, question, answer, "")
    with suppress(NotWritableError):
        write_private(path, "\n".join(lines).encode("ascii"))


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
