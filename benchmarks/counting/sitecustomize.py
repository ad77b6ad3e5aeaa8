"""Counts the function calls of a process's main thread between two signals, for `benchmarks.calls`.

Python imports a module of this name at its start, from a folder that PYTHONPATH names. So the programs need
no hook. The first SIGUSR1 starts the count. The next one ends it and writes the file COUNTED.PID, under
another name first, so that a reader finds only a whole file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from types import FrameType

_counted = os.environ.get("HAWSE_COUNTED", "")
_calls: Counter[str] = Counter()


def _count(frame: FrameType, event: str, function: object) -> None:
    if event == "call":
        _calls[frame.f_code.co_qualname] += 1
    elif event == "c_call":
        _calls[f"{getattr(function, '__qualname__', function)} (C)"] += 1


def _toggle(_number: int, _frame: FrameType | None) -> None:
    if sys.getprofile() is None:
        _calls.clear()
        sys.setprofile(_count)
        return
    sys.setprofile(None)
    path = f"{_counted}.{os.getpid()}"
    with open(path + ".part", "w") as file:
        json.dump(_calls, file)
    os.replace(path + ".part", path)


if _counted:
    signal.signal(signal.SIGUSR1, _toggle)
