"""A container's specification and state: parts of a v1 Container and a v1 ContainerStatus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

import attrs

# From RFC 6761: a name below `.invalid` never resolves, so such an image cannot be pulled.
_UNPULLABLE = re.compile(r"[^/]+\.invalid(?::[0-9]+)?/.+")
_REFERENCE = re.compile(r"(\$)?\$\(([^()]*)\)")


@attrs.frozen
class ContainerSpec:
    """A container's specification: the fields of a v1 Container that the sandbox acts on."""

    name: str
    image: str = "sandbox"
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = attrs.field(factory=dict)
    working_directory: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False

    @property
    def pull_failure(self) -> str:
        """Why its image cannot be pulled, in containerd's words; empty if it can."""
        if _UNPULLABLE.fullmatch(self.image) is None:
            return ""
        host = self.image.partition("/")[0]
        return (
            f'failed to pull and unpack image "{self.image}": failed to resolve reference "{self.image}": '
            f"failed to do request: dial tcp: lookup {host}: no such host"
        )

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, object], environment: Mapping[str, str]) -> ContainerSpec:
        """Read a v1 Container; `environment` holds its `env` and `envFrom`, resolved."""

        def strings(key: str) -> list[str]:
            value = manifest.get(key)
            return [str(part) for part in value] if isinstance(value, list) else []

        return cls(
            name=str(manifest["name"]),
            image=str(manifest.get("image") or "sandbox"),
            command=tuple(expand(part, environment) for part in [*strings("command"), *strings("args")]),
            environment=dict(environment),
            working_directory=str(manifest.get("workingDir") or ""),
            stdin=manifest.get("stdin") is True,
            stdin_once=manifest.get("stdinOnce") is True,
            tty=manifest.get("tty") is True,
        )


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace $(NAME) as Kubernetes does: an unknown name is left unchanged, $$(NAME) becomes $(NAME)."""

    def replacement(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        return f"$({name})" if escaped else environment.get(name, match.group())

    return _REFERENCE.sub(replacement, text)


@attrs.frozen
class Waiting:
    """Not started yet, or waiting for a restart."""

    reason: str
    message: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the v1 ContainerState."""
        message = {"message": self.message} if self.message else {}
        return {"waiting": {"reason": self.reason, **message}}


@attrs.frozen
class Running:
    """Its command is running."""

    started_at: datetime

    def to_json(self) -> dict[str, object]:
        """Return the v1 ContainerState."""
        return {"running": {"startedAt": rfc3339(self.started_at)}}


@attrs.frozen
class Terminated:
    """Its command has ended; `message` says why it could not start."""

    exit_code: int
    started_at: datetime
    finished_at: datetime
    container_id: str
    message: str = ""

    @property
    def reason(self) -> str:
        """Return the word that `kubectl get pods` shows."""
        if self.message:
            return "StartError"
        return "Completed" if self.exit_code == 0 else "Error"

    def to_json(self) -> dict[str, object]:
        """Return the v1 ContainerState."""
        body: dict[str, object] = {"exitCode": self.exit_code, "reason": self.reason}
        if self.message:
            body["message"] = self.message
        body["startedAt"] = rfc3339(self.started_at)
        body["finishedAt"] = rfc3339(self.finished_at)
        body["containerID"] = self.container_id
        return {"terminated": body}


State = Waiting | Running | Terminated


def rfc3339(moment: datetime) -> str:
    """Return a time in UTC as metav1.Time prints it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
