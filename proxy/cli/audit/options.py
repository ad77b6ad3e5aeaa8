"""Parses the options of `hawse audit`, and finds the trail."""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit

import attrs
import click

from proxy.cli.audit.printing import print_notes
from proxy.cli.errors import CommandError, ConfigurationFaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.cli.admin.api.client import Reach
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.trails import TrailPlace

P = ParamSpec("P")
R = TypeVar("R")

# Pruning can't be undone, and `m` could be read as months.
_KEPT = re.compile(r"[0-9]{1,6}[hd]")
# For the look whether a hub runs here: it is on this machine.
LOOK_S = 0.5
# Far below 2^63, SQLite's limit for integers.
_LIMIT_MAX = 10**9
_EVERYTHING = "all"

# The verbs of auth.requestinfo, and the HTTP methods of requests without a resource.
_VERBS = (
    *("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"),
    *("post", "put", "head", "options"),
)
# Recorded by commands that run on the hub's machine without the hub (proxy.cli.audit.local_events).
_LOCAL_VERBS = ("backup", "migrate", "restore")
# By the name of an option's parameter: the filter that it is.
_FILTERS = {
    "kinds": "kind",
    "namespaces": "namespace",
    "resources": "resource",
    "statuses": "status",
    "teams": "team",
    "text": "q",
    "verbs": "verb",
}


def to_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Parse an option's value as a point in time."""
    from audit.search.values import parse_since

    try:
        return None if value is None else parse_since(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def to_span(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Parse the ends of a time span. Raises click.UsageError if the span is empty."""
    from audit.search.values import parse_since

    # One clock reading for both ends. Two readings would put equal ages microseconds apart.
    now = datetime.now(UTC)
    ends = []
    for option, text in (("--since", since), ("--until", until)):
        try:
            ends.append(None if text is None else parse_since(text, now))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=f"'{option}'") from error
    begin, end = ends
    if begin is not None and end is not None and begin >= end:
        raise click.UsageError(f"--since {since!a} is not before --until {until!a}: the span is empty")
    return begin, end


def to_kinds(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Parse an option's values as kinds of events."""
    return to_names(ctx, param, ",".join(value)) if value else ()


def to_age(ctx: click.Context, param: click.Parameter, value: str) -> datetime:
    """Parse an option's value as an age; returns that point in time."""
    if not _KEPT.fullmatch(value):
        raise click.BadParameter(f"{value!a} is not an age in days or hours, such as 90d or 36h", ctx, param)
    moment = to_moment(ctx, param, value)
    assert moment is not None
    return moment


def to_limit(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Parse an option's value as a number of events, or `all`."""
    if value is None or value == _EVERYTHING:
        return value
    if not re.fullmatch("[0-9]{1,10}", value) or int(value) > _LIMIT_MAX:
        raise click.BadParameter(
            f"{value!a} is neither a number from 0 to {_LIMIT_MAX} nor {_EVERYTHING}", ctx, param
        )
    return int(value)


def to_verbs(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Parse an option's value as verbs of Kubernetes or of `hawse admin`."""
    verbs = to_names(ctx, param, value)
    if unknown := [verb for verb in verbs if verb not in _VERBS]:
        # Imported only for these verbs: it takes a quarter of a second.
        from proxy.hub.admin.administration import ACTIONS

        others = sorted({*_LOCAL_VERBS, *(action.verb for action in ACTIONS)} - {*_VERBS})
        for verb in unknown:
            if verb not in others:
                known = f"{', '.join(_VERBS)}, nor of hawse admin's {', '.join(others)}"
                raise click.BadParameter(f"{verb!a} is none of {known}", ctx, param)
    return verbs


def to_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Parse the value of an option that is a filter of names."""
    found = None if value is None else _parsed(ctx, param, value)
    return found if isinstance(found, tuple) else ()


def to_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Parse an option's value as a search text."""
    if value is not None:
        _parsed(ctx, param, value)
    return value


def _parsed(ctx: click.Context, param: click.Parameter, value: str) -> object:
    """Parse an option's value as that of a filter of the admin API."""
    from audit.search.values import parse_value

    try:
        return parse_value(_FILTERS[param.name or ""], value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def data_folder_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that locate the trail."""
    for option in (
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, readable=False),
            metavar="DIR",
            help="The hub's data folder. Overrides the configuration.",
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The hub's configuration file, which names the data folder.",
        ),
    ):
        command = option(command)
    return command


def trail_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that locate a trail on this machine, or at a hub."""
    hub = click.option(
        "--hub",
        metavar="NAME",
        help="Read the trail of a hub that `hawse admin login` has named, with a token of the role auditor.",
    )
    return hub(data_folder_options(command))


def reach_of(config: Path | None, data_dir: Path | None, hub: str | None) -> Reach:
    """Return where the trail is; raises click.UsageError."""
    from proxy.cli.admin.api.client import Reach

    if hub is not None and (config is not None or data_dir is not None):
        raise click.UsageError("--hub names a remote hub: leave out --data-dir and --config")
    # `hawse admin` has the variable as the value of its option.
    stated = os.environ.get("HAWSE_HUB_CONFIG")
    return Reach(config or (Path(stated) if stated and hub is None else None), data_dir, hub)


@attrs.frozen
class FoundTrail:
    """The trail of a data folder."""

    data: DataDir
    place: TrailPlace
    org: str = ""
    """The configured organisation."""
    mask: tuple[str, ...] = ()
    """The configured masks."""


def find_trail(config: Path | None, data_dir: Path | None) -> FoundTrail:
    """Find the trail of the hub on this machine. Raises CommandError."""
    from proxy.hub.home.config import load
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.files.private_files import DataDirError
    from proxy.hub.home.trails import place_of
    from proxy.process.config import ConfigError

    try:
        if data_dir is not None:
            data = DataDir(data_dir)
            return FoundTrail(data, place_of(data))
        settings = load(config)
        data = DataDir(settings.data_dir)
        return FoundTrail(data, place_of(data), settings.org, settings.audit.mask)
    except ConfigError as error:
        raise ConfigurationFaults("hub", error.faults) from error
    except DataDirError as error:
        raise CommandError(str(error)) from error


def note_source(found: FoundTrail, *, by_option: bool) -> None:
    """Mention whose trail it is, where that may not be the expected one."""
    from proxy.cli.admin.api.client import URL_VARIABLE

    if os.environ.get(URL_VARIABLE) and not by_option:
        print_notes(f"reading the trail of {found.data.path} on this machine, and not of {URL_VARIABLE}")
    if isinstance(found.place, Path) and _is_stopped(found.data):
        print_notes(f"the hub of {found.data.path} is stopped: reading its trail from {found.place}")


def _is_stopped(data: DataDir) -> bool:
    """Whether a hub has run on the folder, and nothing listens at its admin API's address now."""
    from proxy.hub.home.files.private_files import DataDirError

    try:
        endpoint = data.admin.endpoint()
    except DataDirError:
        # The command needs only the trail.
        return False
    if endpoint is None:
        return False
    parts = urlsplit(endpoint.url)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=LOOK_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def unavailable(error: Exception) -> CommandError:
    """Return the error for a trail that can't be used, with the next step."""
    from audit.errors import NoTrail

    hint = ": name the hub's data folder with --data-dir, or its configuration with --config"
    return CommandError(f"{error}{hint if isinstance(error, NoTrail) else ''}")
