"""The state of a login: the part that this machine has, and the hub's part if the hub answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from proxy.agent.account import Account
from proxy.agent.errors import AgentError, DeniedError, RefusedError
from proxy.agent.hub import Reach, fetch_reach
from proxy.agent.platform import FILE_PREFIX
from proxy.agent.pointing import Pointing, pointing

ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"
# What a hub allows an assertion to be ahead of its clock (docs/agents.md).
SKEW_MAX_S = 5.0


class Status(NamedTuple):
    """A login, and how it stands with its hub."""

    account: Account
    state: str
    """ACCEPTED or REFUSED by the hub, or UNKNOWN where it was not reached."""
    fault: str
    """Why it is not accepted, with the next step; "" if it is."""
    reach: Reach | None
    kubeconfigs: list[Pointing]


def status_of(environment: Mapping[str, str], account: Account) -> Status:
    """Ask the hub about a login, and this machine's kubeconfigs. Raises nothing for what is wrong there."""
    found = pointing(environment, account)
    try:
        reach = fetch_reach(account)
    except (RefusedError, DeniedError) as error:
        return Status(account, REFUSED, str(error), None, found)
    except AgentError as error:
        return Status(account, UNKNOWN, str(error), None, found)
    return Status(account, ACCEPTED, "", reach, found)


def proof(account: Account) -> str:
    """What the agent proves itself by, in words."""
    if account.platform is None:
        return "a key of its own" if account.api_key is None else "an API key"
    if account.platform.startswith(FILE_PREFIX):
        return f"the platform's token in {account.platform.removeprefix(FILE_PREFIX)}"
    return "the platform's token of a GitHub job"


def clock(reach: Reach) -> str:
    """How this machine's clock stands to the hub's, in words; "" where the hub does not say its time."""
    ahead_s = reach.ahead_s or reach.skew_s
    if ahead_s is None:
        return ""
    if abs(ahead_s) < 1:
        return "as the hub's"
    said = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the hub's"
    return said if abs(ahead_s) <= SKEW_MAX_S else f"{said}: set it"


def other_name(account: Account, reach: Reach) -> str:
    """What the hub calls itself, where the login calls it otherwise; else ""."""
    return reach.hub if reach.hub not in ("", account.hub) else ""
