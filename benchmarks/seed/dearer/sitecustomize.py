"""Makes each request dearer, to show that the gate catches it: `python -m benchmarks.gate --seed dearer`.

Python imports a module of this name at its start, from a folder that PYTHONPATH names. So the product needs
no hook. The hub calls the method that is patched here once for each request, to record its end.
"""

from __future__ import annotations

import sys

try:
    from audit.record import Event
    from audit.recording.recorder import Recorder
except ImportError as error:
    # Python goes on after an exception here, and the program would run without the seed.
    sys.exit(f"the seed does not fit the product: {error}")

_complete = Recorder.complete


def _dearer(self: Recorder, event: Event) -> None:
    sum(range(2500))
    _complete(self, event)


Recorder.complete = _dearer  # type: ignore[method-assign]
