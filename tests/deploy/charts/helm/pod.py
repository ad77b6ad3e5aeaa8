"""A pod's container as a process: the command, variables and volumes that the API server has for it."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
# /etc is empty but for the volumes: the process must need nothing else of it. It takes the shell's place, so
# that it gets the signals.
_START = """\
set -e
mount -t tmpfs -o mode=755 etc /etc
mount -t tmpfs -o mode=755 run /run
{volumes}
exec env -i {variables} {command}
"""
Kubectl = Callable[..., bytes]


@attrs.frozen
class Pod:
    """A pod of a Deployment, and the administrator's kubectl for what it refers to."""

    name: str
    namespace: str
    spec: Mapping[str, Any]
    kubectl: Kubectl
    server: str

    @classmethod
    def of(cls, kubectl: Kubectl, namespace: str, deployment: str, server: str) -> Pod:
        """Read the Deployment, and take the name of its pod."""
        read = json.loads(
            kubectl("get", "deployment", deployment, f"--namespace={namespace}", "--output=json")
        )
        labels = ",".join(f"{key}={value}" for key, value in read["spec"]["selector"]["matchLabels"].items())
        pods = kubectl("get", "pods", f"--namespace={namespace}", f"--selector={labels}", "--output=name")
        [name] = pods.decode().split()
        return cls(name.partition("/")[2], namespace, read["spec"]["template"]["spec"], kubectl, server)

    @property
    def variables(self) -> dict[str, str]:
        """The container's variables, and those of the API server's address."""
        url = urlsplit(self.server)
        found = {"KUBERNETES_SERVICE_HOST": str(url.hostname), "KUBERNETES_SERVICE_PORT": str(url.port)}
        [container] = self.spec["containers"]
        for each in container["env"]:
            if "valueFrom" in each:
                assert each["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
                found[each["name"]] = self.name
            else:
                found[each["name"]] = each["value"]
        return found

    def volumes(self, folder: Path) -> dict[Path, str]:
        """Write the volumes as the kubelet does; returns the folders with their mount points."""
        [container] = self.spec["containers"]
        assert self.spec["automountServiceAccountToken"]
        account = self.spec["serviceAccountName"]
        token = self.kubectl("create", "token", account, f"--namespace={self.namespace}").strip()
        root = self.kubectl(
            "get", "configmap", "kube-root-ca.crt", f"--namespace={self.namespace}", "--output=json"
        )
        written = {"ca.crt": json.loads(root)["data"]["ca.crt"].encode()}
        written |= {"token": token, "namespace": self.namespace.encode()}
        mounted = {_write(folder / "account", written): ACCOUNT}
        sources = {each["name"]: each for each in self.spec["volumes"]}
        for mount in container["volumeMounts"]:
            content = self._content(sources[mount["name"]])
            mounted[_write(folder / mount["name"], content)] = mount["mountPath"]
        return mounted

    def _content(self, volume: Mapping[str, Any]) -> dict[str, bytes]:
        if "secret" in volume:
            data = self._data("secret", volume["secret"]["secretName"])
            return {key: base64.b64decode(value) for key, value in data.items()}
        data = self._data("configmap", volume["configMap"]["name"])
        return {key: value.encode() for key, value in data.items()}

    def _data(self, kind: str, name: str) -> dict[str, str]:
        read = json.loads(self.kubectl("get", kind, name, f"--namespace={self.namespace}", "--output=json"))
        data = read["data"]
        assert isinstance(data, dict)
        return data

    def argv(self, program: Path, folder: Path, changes: Mapping[str, str]) -> list[str]:
        """The command that runs the container, whose image's entry point is this program."""
        [container] = self.spec["containers"]
        assert "command" not in container
        mounts = "\n".join(
            f"mkdir -p {inside} && mount --bind {shlex.quote(str(outside))} {inside}"
            for outside, inside in self.volumes(folder).items()
        )
        settings = {**self.variables, **changes}
        script = _START.format(
            volumes=mounts,
            variables=" ".join(shlex.quote(f"{key}={value}") for key, value in settings.items()),
            command=shlex.join([str(program), *container["args"]]),
        )
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def _write(folder: Path, content: Mapping[str, bytes]) -> Path:
    # The files are links into a folder that an update replaces.
    data = folder / "..2026"
    data.mkdir(parents=True)
    (folder / "..data").symlink_to(data.name)
    for name, value in content.items():
        (data / name).write_bytes(value)
        (folder / name).symlink_to(Path("..data", name))
    return folder
