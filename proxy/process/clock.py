"""A clock that nothing sets and nothing slews, for what must not depend on the wall clock.

CLOCK_MONOTONIC, which trio goes by, is slewed with the wall clock: chrony puts a clock right that was a
minute off by letting both run 8 % faster or slower for a quarter of an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# Seconds since some moment; it stands still while the machine is suspended. A relay asks it for each request,
# which a function of Python would make twice as dear.
steady_s: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC_RAW)
