"""Which calls an approval can be bound to. Pure."""

from __future__ import annotations

from auth.policy.ask import Ask
from auth.requestinfo import RequestInfo


def check_bindable(info: RequestInfo, ask: Ask) -> bool:
    """Return whether an approval binds all that the call does; raises CannotAskError.

    Call it before the body is read. `info.upgrade` must say whether the headers ask for an upgrade.
    """
    raise NotImplementedError
