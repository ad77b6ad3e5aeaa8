"""What a look at everything that a process starts with has found.

The hub and the relay look before they start, and `--check` looks without a start: one list of rules for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

_Value = TypeVar("_Value")


@attrs.frozen
class Findings:
    """Each finding is a line that names the thing and the next step, and no secret."""

    configuration: list[str] = attrs.Factory(list)
    """Faults of the file and the environment, by their keys. With one of these it does not start."""
    faults: list[str] = attrs.Factory(list)
    """Faults of what the configuration names. With one of these it does not start either."""
    refused: list[str] = attrs.Factory(list)
    """It starts, with a warning, and those who connect refuse it."""
    warnings: list[str] = attrs.Factory(list)
    """What is well for now."""
    seen: dict[str, str] = attrs.Factory(dict)
    """What was looked at, by its name."""

    @property
    def fatal(self) -> list[str]:
        """What keeps it from starting."""
        return [*self.configuration, *self.faults]

    def has_fault_of(self, *keys: str) -> bool:
        """Whether one of these keys already has a fault, so checks that use its value are skipped."""
        told = {fault.partition(":")[0] for fault in self.configuration}
        return any(name == key or name.startswith(f"{key}.") for name in told for key in keys)

    def look(self, read: Callable[[], _Value], known: tuple[type[Exception], ...]) -> _Value | None:
        """Read something; one of the known errors becomes a fault, and None."""
        try:
            return read()
        except known as error:
            # Two looks may meet the same file.
            if str(error) not in self.faults:
                self.faults.append(str(error))
        return None
