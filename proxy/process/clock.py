"""A clock that is never set and never slewed, for code that must not depend on the wall clock.

CLOCK_MONOTONIC, which trio uses, is slewed with the wall clock. To correct a clock by a minute, chrony runs
both 8 % faster or slower for a quarter of an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# Seconds since an arbitrary moment; stops while the machine is suspended. A relay calls it for each request,
# and a Python function would double the cost.
steady_s: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC_RAW)
