"""The state of a login: this machine's part, and the hub's part if the hub answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from proxy.agent.hub.platform import FILE_PREFIX
from proxy.agent.hub.requests import Reach, fetch_reach
from proxy.agent.kubeconfig.hub_entries import HubEntries, find_hub_entries
from proxy.agent.local.account import Account
from proxy.agent.local.errors import AgentError, DeniedError, RefusedError

ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"
# How far ahead of the hub's clock an assertion may be (docs/agents.md).
SKEW_MAX_S = 5.0


class Status(NamedTuple):
    """A login and its state at the hub."""

    account: Account
    state: str
    """ACCEPTED or REFUSED by the hub; UNKNOWN if the hub was not reached."""
    fault: str
    """Why it is not accepted, with the next step; "" if accepted."""
    reach: Reach | None
    kubeconfigs: list[HubEntries]


def status_of(environment: Mapping[str, str], account: Account) -> Status:
    """Check a login at its hub and in this machine's kubeconfigs. Faults are in the result, not raised."""
    found = find_hub_entries(environment, account)
    try:
        reach = fetch_reach(account)
    except (RefusedError, DeniedError) as error:
        return Status(account, REFUSED, str(error), None, found)
    except AgentError as error:
        return Status(account, UNKNOWN, str(error), None, found)
    return Status(account, ACCEPTED, "", reach, found)


def proof_text(account: Account) -> str:
    """The kind of the agent's credential, in words."""
    if account.platform is None:
        return "a key of its own" if account.api_key is None else "an API key"
    if account.platform.startswith(FILE_PREFIX):
        return f"the platform's token in {account.platform.removeprefix(FILE_PREFIX)}"
    return "the platform's token of a GitHub job"


def clock_text(reach: Reach) -> str:
    """This machine's clock compared with the hub's, in words; "" if the hub does not state its time."""
    ahead_s = reach.ahead_s or reach.skew_s
    if ahead_s is None:
        return ""
    if abs(ahead_s) < 1:
        return "as the hub's"
    offset = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the hub's"
    return offset if abs(ahead_s) <= SKEW_MAX_S else f"{offset}: set it"


def other_name(account: Account, reach: Reach) -> str:
    """The hub's own URL if it differs from the login's; else ""."""
    return reach.hub if reach.hub not in ("", account.hub) else ""
