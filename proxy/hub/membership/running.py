"""Which hub processes run, for those who close the calls of ended ones in the trail."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from audit.errors import AuditUnavailable
from audit.postgres.link import Conninfo
from proxy.hub.membership.member import ENDED
from proxy.hub.membership.table import read_state
from proxy.hub.store.engines.errors import StoreUnavailableError


@attrs.frozen
class RunningHubs:
    """The processes of all hubs on a database."""

    conninfo: Conninfo
    hub: str
    """The id of this folder's hub."""
    runs_here: Callable[[str], bool]
    """Whether a process of this folder runs."""

    def is_running(self, boot: str) -> bool:
        """Return whether the process of a boot may still write events; for any thread.

        The kernel's locks show that of this folder's processes, and of those from before the table of hubs.
        For the others it is the state of the row. That is read now, since a hub may have joined meanwhile.
        Raises Lost, Refused and AuditUnavailable.
        """
        try:
            found = read_state(self.conninfo, boot)
        except StoreUnavailableError as error:
            raise AuditUnavailable(str(error)) from error
        if found is None or found[0] == self.hub:
            return self.runs_here(boot)
        return found[1] not in ENDED
