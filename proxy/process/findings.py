"""The results of checking a process's configuration and files.

The hub and the relay check before they start, and `--check` does so without starting: both use the same
rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

_Value = TypeVar("_Value")


@attrs.frozen
class Findings:
    """Each finding is a line that names the thing and the next step, and holds no secret."""

    configuration: list[str] = attrs.Factory(list)
    """Errors in the file and the environment, by their keys. Any one prevents the start."""
    faults: list[str] = attrs.Factory(list)
    """Errors in the files and addresses that the configuration names. Any one prevents the start too."""
    refused: list[str] = attrs.Factory(list)
    """The process starts, with a warning, and clients refuse it."""
    warnings: list[str] = attrs.Factory(list)
    """No problem for now, but soon."""
    seen: dict[str, str] = attrs.Factory(dict)
    """The checked things, by name."""

    @property
    def fatal(self) -> list[str]:
        """The errors that prevent the start."""
        return [*self.configuration, *self.faults]

    def has_fault_of(self, *keys: str) -> bool:
        """Whether one of these keys already has an error, so that checks of its value are skipped."""
        faulty = {fault.partition(":")[0] for fault in self.configuration}
        return any(name == key or name.startswith(f"{key}.") for name in faulty for key in keys)

    def look(self, read: Callable[[], _Value], known: tuple[type[Exception], ...]) -> _Value | None:
        """Read something; one of the known errors is added to `faults`, and None is returned."""
        try:
            return read()
        except known as error:
            # Two checks may read the same file.
            if str(error) not in self.faults:
                self.faults.append(str(error))
        return None
