"""Reads a configuration: a TOML file, overlaid by the environment, into attrs classes.

A configuration is one attrs class whose fields are values or sections; a section is an attrs class of values.
An environment variable's name is the prefix and the key's path in capitals: `tls.certificate` of the hub is
HAWSE_HUB_TLS_CERTIFICATE. A section may hold a table of further sections, whose names the operator chooses,
or a list of them; only a file can state those.

All errors are reported together, one line with its path for each, so that one restart shows them all.
Messages never repeat values: a private key pasted in place of its file's name must not reach a log.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from proxy.process.stated import content, read_toml, stated_file, stated_path, stated_text
from proxy.process.suggestions import near_names

_Stated = TypeVar("_Stated", bound=attrs.AttrsInstance)


class ConfigError(Exception):
    """The configuration is invalid; `faults` holds one line per error, `path: what is wrong`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@attrs.frozen
class Address:
    """A host to listen on (an IP address, or a name that resolves to one) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `host:port` or `[v6]:port`; raises ValueError."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text, re.ASCII)
        if match is None and "%" in text:
            raise ValueError("an address with a zone cannot be listened on: use [::] for every address")
        if match is None:
            raise ValueError("expected host:port, as in 127.0.0.1:8443 or [::]:8443")
        v6, name, digits = match.groups()
        if int(digits) > 65535:
            raise ValueError("the port exceeds 65535")
        if v6 is not None and not _is_v6(v6):
            raise ValueError("only IPv6 addresses are written in brackets")
        return cls(v6 or name, int(digits))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_stated(
    cls: type[_Stated],
    prefix: str,
    path: Path | None,
    environment: Mapping[str, str],
    faults: list[str],
    *,
    defaults: Mapping[str, object] | None = None,
) -> _Stated | None:
    """Read the file (if any) and the environment; returns None if errors leave no configuration to check.

    A faulty value that has a default is replaced by it, so that the caller can check the others too. Without
    a path, the variable CONFIG may name the file. `defaults` are for keys that are stated nowhere, and whose
    default the class cannot know. The caller checks what a type cannot express.
    """
    path = stated_file(prefix, path, environment)
    unread: list[str] = []
    tree = read_toml(path, unread) if path is not None else {}
    faults += unread
    _overlay(tree, cls, prefix, environment, faults)
    if unread or (faults and not tree):
        # Otherwise each required key of the unread file would be reported as missing.
        return None
    for key, value in (defaults or {}).items():
        tree.setdefault(key, value)
    for section in _sections(cls):
        # So that a missing required key is reported by its own name, not as a missing section.
        tree.setdefault(section, {})
    converter = _converter(path)
    try:
        return converter.structure(tree, cls)
    except ClassValidationError as error:
        _collect(error, "", faults)
        _drop_faulty(error, tree)
    try:
        return converter.structure(tree, cls)
    except ClassValidationError:
        return None


def add_faults(faults: list[str], found: list[str]) -> None:
    """Add errors found by a later check, except for keys that already have one, which caused them."""
    faulty = {fault.partition(":")[0] for fault in faults}
    for fault in found:
        key = fault.partition(":")[0]
        if not any(path == key or path.startswith(f"{key}.") for path in faulty):
            faults.append(fault)


def read_text(name: str, path: Path, faults: list[str]) -> str | None:
    """Read a small text file named by the key `name`; an error is added to `faults` under `name`."""
    try:
        return content(path)
    except OSError as error:
        faults.append(f"{name}: {_unreadable(path, error)}")
    except ValueError as error:
        faults.append(f"{name}: {path} is {error}")
    return None


def fault_of_file(path: Path) -> str | None:
    """Return why a file that a key names cannot be read; None if it can."""
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> str:
    """The error text for an unreadable file that a key names.

    The message has the path only if the file exists. Otherwise it has the folder, since the stated value may
    be the secret itself.
    """
    if os.path.lexists(path):
        return f"{path} cannot be read: {error.strerror}"
    # Not Path.is_dir: it raises for a name that is too long, or below a folder without access.
    folder = next(folder for folder in path.parents if os.path.isdir(folder))
    return f"cannot be read: {error.strerror}, looked for in {folder}"


def _is_v6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _overlay(
    tree: dict[str, object],
    cls: type[attrs.AttrsInstance],
    prefix: str,
    environment: Mapping[str, str],
    faults: list[str],
) -> None:
    """Put the environment's values into the tree, in their TOML form."""
    known = _variables(cls, prefix)
    # Kubernetes sets HAWSE_HUB_PORT=tcp://… in every pod of a namespace with a Service named `hawse-hub`.
    service_link = re.compile(rf"{prefix}(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
    for name, text in sorted(environment.items()):
        if not name.startswith(prefix) or name == f"{prefix}CONFIG" or service_link.fullmatch(name):
            continue
        if name not in known:
            # Compared without the prefix, which would make any two names similar.
            typed = name.removeprefix(prefix).lower()
            near = near_names(typed, (each.removeprefix(prefix).lower() for each in known))
            faults.append(_unknown(name, "setting", [f"{prefix}{each.upper()}" for each in near], known))
            continue
        section, key, read = known[name]
        try:
            value = read(text)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        table = tree if section is None else tree.setdefault(section, {})
        if isinstance(table, dict):  # otherwise the file is wrong, which structuring reports
            table[key] = value


def _sections(cls: type[attrs.AttrsInstance]) -> dict[str, type[attrs.AttrsInstance]]:
    """The fields that are tables."""
    fields = attrs.fields(attrs.resolve_types(cls))
    return {field.name: field.type for field in fields if _is_section(field.type)}


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and attrs.has(kind) and kind is not Address


def _is_named_sections(kind: object) -> bool:
    return get_origin(kind) is Mapping and _is_section(get_args(kind)[1])


def _is_listed_sections(kind: object) -> bool:
    return get_origin(kind) is tuple and _is_section(get_args(kind)[0])


def _variables(
    cls: type[attrs.AttrsInstance], prefix: str, section: str | None = None
) -> dict[str, tuple[str | None, str, Callable[[str], object]]]:
    """Every variable, with its section, its key, and the parser of its text."""
    found: dict[str, tuple[str | None, str, Callable[[str], object]]] = {}
    sections = _sections(cls)
    for field in attrs.fields(cls):
        name = f"{prefix}{field.name.upper()}"
        if field.name in sections:
            found |= _variables(sections[field.name], f"{name}_", field.name)
        elif _is_named_sections(field.type) or _is_listed_sections(field.type):
            continue
        else:
            found[name] = section, field.name, _READERS.get(field.type, str)
    return found


def _read_int(text: str) -> int:
    # int() would accept "1_0" and non-ASCII digits.
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        raise ValueError("expected a whole number")
    return int(text)


def _read_bool(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("expected true or false")
    return text == "true"


def _read_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


# Parsers from a variable's text to a TOML value; all other types are strings in TOML too.
_READERS: dict[object, Callable[[str], object]] = {
    int: _read_int,
    bool: _read_bool,
    tuple[str, ...]: _read_lines,
}


def _converter(config_file: Path | None) -> cattrs.Converter:
    """Strict types: by default cattrs converts "5" to 5 and 5 to "5", which would hide mistakes."""
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

    def section(kind: type[attrs.AttrsInstance]) -> Callable[[object, object], object]:
        fill = make_dict_structure_fn(kind, converter)

        def table(value: object, _: object) -> object:
            if not isinstance(value, dict):
                raise ValueError("expected a table")
            return fill(value, kind)

        return table

    def named_sections(value: object, kind: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise ValueError("expected a table")
        return _filled(converter, value, get_args(kind)[1])

    def listed_sections(value: object, kind: object) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise ValueError("expected a list of tables")
        numbered = {str(number): table for number, table in enumerate(value, 1)}
        return tuple(_filled(converter, numbered, get_args(kind)[0]).values())

    converter.register_structure_hook_factory(_is_section, section)
    converter.register_structure_hook_func(_is_named_sections, named_sections)
    converter.register_structure_hook_func(_is_listed_sections, listed_sections)
    converter.register_structure_hook(str, stated_text)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(bool, _boolean)
    converter.register_structure_hook(Path, lambda value, _: stated_path(value, config_file))
    converter.register_structure_hook(Address, lambda value, _: Address.parse(stated_text(value)))
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _texts)
    converter.register_structure_hook_func(_is_choice, _choice)
    return converter


def _filled(
    converter: cattrs.Converter, tables: Mapping[str, object], each: type[object]
) -> dict[str, object]:
    """Fill sections; raises ClassValidationError with the errors of all, under their names."""
    filled, faults = {}, []
    for name, table in tables.items():
        try:
            filled[name] = converter.structure(table, each)
        except (ValueError, ClassValidationError) as fault:
            fault.__notes__ = [AttributeValidationNote(f"at {name}", name, each)]
            faults.append(fault)
    if faults:
        raise ClassValidationError("faulty sections", faults, dict)
    return filled


def _whole(value: object, _: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("expected a whole number")
    return value


def _boolean(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _texts(value: object, _: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of strings")
    return tuple(value)


def _is_choice(kind: object) -> bool:
    return get_origin(kind) is Literal


def _choice(value: object, kind: object) -> object:
    choices = get_args(kind)
    if value not in choices:
        raise ValueError("expected " + " or ".join(f'"{choice}"' for choice in choices))
    return value


def _collect(error: ClassValidationError, prefix: str, faults: list[str]) -> None:
    """Flatten cattrs' tree of errors. Its notes hold the paths; the leaves are our errors, without values."""
    noted, alone = error.group_exceptions()
    for fault, note in noted:
        if isinstance(fault, ClassValidationError):
            _collect(fault, f"{prefix}{note.name}.", faults)
        elif isinstance(fault, KeyError):
            faults.append(f"{prefix}{note.name}: missing")
        else:
            faults.append(f"{prefix}{note.name}: {fault}")
    for extra in alone:
        assert isinstance(extra, ForbiddenExtraKeysError)
        known = [field.name for field in attrs.fields(extra.cl)]
        faults.extend(
            _unknown(f"{prefix}{key}", "key", near_names(key, known), known)
            for key in sorted(extra.extra_fields)
        )


def _unknown(name: str, kind: str, near: Sequence[str], known: Iterable[str]) -> str:
    """The error for an unknown name: the nearest names, or else all names."""
    if near:
        return f"{name}: no such {kind} (did you mean {' or '.join(near)}?)"
    return f"{name}: no such {kind}; there are {', '.join(sorted(known))}"


def _drop_faulty(error: ClassValidationError, tree: dict[str, object]) -> None:
    noted, alone = error.group_exceptions()
    for fault, note in noted:
        inner = tree.get(note.name)
        if isinstance(fault, ClassValidationError) and isinstance(inner, dict):
            _drop_faulty(fault, inner)
        else:
            tree.pop(note.name, None)
    for extra in alone:
        assert isinstance(extra, ForbiddenExtraKeysError)
        for key in extra.extra_fields:
            tree.pop(key, None)
