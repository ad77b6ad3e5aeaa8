"""A container's environment: `env` and `envFrom`, with references to the pod, ConfigMaps and Secrets."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from sandbox.container import expand
from sandbox.objects import Object, items, lookup, mapping, string_map, text
from sandbox.storage import Collection


class Environment:
    """Resolves environments. A dangling reference leaves its variable unset."""

    def __init__(self, config_maps: Collection, secrets: Collection) -> None:
        self._config_maps = config_maps
        self._secrets = secrets

    def of(self, pod: Object, container: Object) -> dict[str, str]:
        """Return the environment of one container of a pod."""
        namespace = text(pod, "metadata", "namespace")
        result: dict[str, str] = {}
        for source in items(container, "envFrom"):
            prefix = text(source, "prefix")
            values = {
                **self._config_map(namespace, text(source, "configMapRef", "name")),
                **self._secret(namespace, text(source, "secretRef", "name")),
            }
            result.update({prefix + key: value for key, value in values.items()})
        for variable in items(container, "env"):
            value = self._value(pod, namespace, variable, result)
            if value is not None:
                result[text(variable, "name")] = value
        return result

    def _value(self, pod: Object, namespace: str, variable: Object, known: Mapping[str, str]) -> str | None:
        source = mapping(variable, "valueFrom")
        if not source:
            return expand(text(variable, "value"), known)
        if reference := mapping(source, "fieldRef"):
            return _field(pod, text(reference, "fieldPath"))
        if reference := mapping(source, "configMapKeyRef"):
            return self._config_map(namespace, text(reference, "name")).get(text(reference, "key"))
        if reference := mapping(source, "secretKeyRef"):
            return self._secret(namespace, text(reference, "name")).get(text(reference, "key"))
        return None

    def _config_map(self, namespace: str, name: str) -> Mapping[str, str]:
        item = self._config_maps.get(namespace, name) if name else None
        return string_map(item.value, "data") if item is not None else {}

    def _secret(self, namespace: str, name: str) -> Mapping[str, str]:
        item = self._secrets.get(namespace, name) if name else None
        data = string_map(item.value, "data") if item is not None else {}
        return {key: _decoded(value) for key, value in data.items()}


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value).decode(errors="surrogateescape")
    except binascii.Error:
        return ""


def _field(pod: Object, path: str) -> str | None:
    """Return a field of the pod, such as `metadata.name` or `metadata.labels['app']`."""
    head, bracket, key = path.partition("['")
    if bracket:
        return string_map(pod, *head.split(".")).get(key.removesuffix("']"))
    value = lookup(pod, *path.split("."))
    return value if isinstance(value, str) else None
