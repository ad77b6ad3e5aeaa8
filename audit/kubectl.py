"""A recorded request as an equivalent kubectl command, for people to read, not to run unchanged.

Bodies are never recorded, so the command lacks what was created or changed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from urllib.parse import parse_qs

from audit.record import Event, Request, Stream

# Query parameters that kubectl has an option for.
_SELECTORS = {"labelSelector": "-l", "fieldSelector": "--field-selector"}
_COMMANDS = {
    "get": "get",
    "list": "get",
    "watch": "get",
    "create": "create",
    "update": "replace",
    "patch": "patch",
    "delete": "delete",
    "deletecollection": "delete",
}
_STREAMS = {"log": "logs", "exec": "exec", "attach": "attach", "portforward": "port-forward"}
# No kubectl command sends a request to a proxied backend.
_RAW = frozenset({"proxy"})
_FROM_FILE = frozenset({"replace", "patch"})
# These verbs name no object; without a namespace they cover all namespaces.
_OF_MANY = frozenset({"list", "watch", "deletecollection"})


def kubectl_words(event: Event) -> list[str]:
    """The command's words after `kubectl`; empty if no kubectl command sends such a request."""
    if event.req is None or event.cluster is None:
        return []
    return words_of(event.req, event.stream)


def words_of(req: Request, stream: Stream | None) -> list[str]:
    """The same of a request to a cluster; `stream` has the command of an exec."""
    if not req.verb:
        return []
    # The client chooses both: as options, such as `--server=…`, they would change the command's meaning.
    if req.resource.startswith("-") or req.name.startswith("-"):
        return []
    parsed = parse_qs(req.raw_target.partition("?")[2], keep_blank_values=True)
    # The API server takes the first value, also if it is empty.
    query = {name: values[0] for name, values in parsed.items()}
    if req.subresource in _STREAMS:
        return _stream(req, stream, query)
    command = _COMMANDS.get(req.verb)
    raw = req.subresource in _RAW or (bool(req.subresource) and command in {"create", "delete"})
    if command is None or not req.resource or raw:
        return ["get", "--raw", req.raw_target] if req.method == "GET" else []
    words = [command, *_object(command, req)]
    if req.subresource:
        words.append(f"--subresource={req.subresource}")
    if req.verb == "deletecollection" and not query.get("labelSelector"):
        words.append("--all")
    words += _where(req)
    for name, option in _SELECTORS.items():
        # This is how kubectl requests a list or a watch of one object.
        by_name = f"metadata.name={req.name}" if req.name else None
        value = query.get(name)
        if value and value != by_name:
            words += [option, value]
    if req.verb == "watch":
        words.append("--watch")
    if req.dry_run:
        words.append("--dry-run=server")
    return words


def kubectl_line(words: Sequence[str]) -> str:
    """The words, quoted for a shell."""
    return shlex.join(words)


def _object(command: str, req: Request) -> list[str]:
    """The words that name the object or the list. `create` has them in its file."""
    if command == "create":
        return ["-f", "..."]
    words = [f"{req.resource}.{req.group}" if req.group else req.resource]
    if command in _FROM_FILE:
        return [*words, req.name, "-f", "..."]
    return [*words, req.name] if req.name else words


def _where(req: Request) -> list[str]:
    if req.namespace and req.resource != "namespaces":
        return ["-n", req.namespace]
    return ["-A"] if req.verb in _OF_MANY and not req.name else []


def _stream(req: Request, stream: Stream | None, query: dict[str, str]) -> list[str]:
    words = [_STREAMS[req.subresource], req.name, *_where(req)]
    if container := query.get("container"):
        words += ["-c", container]
    if req.subresource == "log":
        return [*words, "-f"] if _is_true(query, "follow") else words
    if _is_true(query, "stdin"):
        words.append("-i")
    if stream is not None and stream.tty:
        words.append("-t")
    if stream is not None and stream.command:
        words += ["--", *stream.command]
    # The ports are requested inside the stream.
    return [*words, "..."] if req.subresource == "portforward" else words


def _is_true(query: dict[str, str], name: str) -> bool:
    """Whether the API server takes a parameter for true: any value but these two, an empty one too."""
    return query.get(name, "false").lower() not in {"0", "false"}
