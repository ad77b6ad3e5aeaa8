"""`hawse admin cluster values`: the part of the chart's values that changes with agents and teams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import click

from audit.escape import escape
from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.api.inputs import read_text
from proxy.cli.errors import AnswerIsNo, CommandError
from proxy.cli.output import Json, Object, json_option, print_json

# 50,000 agents with the longest names have 3.5 MB.
FILE_BYTES_MAX = 4 * 1024 * 1024
_KEYS = ("agents", "groups")


@attrs.frozen
class Difference:
    """The names that a file of values lacks, and those that it has too much, under one of its keys."""

    key: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]


@click.command("values")
@click.argument("name")
@click.option(
    "--check",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Print only the differences from this file of values, and exit 3 if there are any.",
)
@json_option
@click.pass_obj
def cluster_values(reach: Reach, /, name: str, file: Path | None, as_json: bool) -> None:
    """Print the values of the chart that name agents and teams.

    \b
    hawse admin cluster values prod > prod.names.yaml
    helm upgrade prod CHART --namespace hawse --values prod.values.yaml --values prod.names.yaml
    hawse admin cluster values prod --check prod.names.yaml      (exits 3 if it is behind)

    It prints the names alone: `impersonate.form` stays as in your other values. The check, too, compares the
    names alone, so FILE may hold more.
    """
    from proxy.cli.admin.cluster.manifests import impersonated
    from proxy.kubernetes.chart_values import names_values
    from proxy.kubernetes.cluster_role import ManifestError
    from proxy.kubernetes.write_yaml import to_yaml

    stated = None if file is None else read_names(file)
    agents, groups = impersonated(reach.client().get("clusters", name, "rbac"))
    try:
        names = names_values(agents, groups)
    except ManifestError as error:
        raise CommandError(f"the hub's answer has names that must not be impersonated: {error}") from error
    if file is not None:
        _check(name, file, stated, {"agents": agents, "groups": groups}, as_json=as_json)
        return
    if as_json:
        print_json({"impersonate": {"agents": [*agents], "groups": [*groups]}})
        return
    click.echo(f"# Printed by: hawse admin cluster values {name}")
    click.echo(to_yaml([{"impersonate": names}]).removeprefix("---\n"), nl=False)


def read_names(file: Path) -> Mapping[str, frozenset[str]] | None:
    """Return the names of a file of values, or None for form `wildcard`. Raises CommandError."""
    from proxy.kubernetes.untrusted_yaml import YamlError, read_yaml

    # A part of a file would not do: the rest could hold `impersonate` again, which Helm would take.
    text = read_text(file, "--check", FILE_BYTES_MAX)
    try:
        document = read_yaml(text.encode())
    except YamlError:
        raise CommandError(f"{file} is not YAML: name a file of values") from None
    found = document.get("impersonate") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise CommandError(f"{file} has no impersonate: write it with hawse admin cluster values NAME > FILE")
    if found.get("form") == "wildcard":
        return None
    names = {}
    for key in _KEYS:
        # Helm merges files: a key that this one leaves out may stand in another.
        listed = found.get(key)
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise CommandError(f"{file} has no list of names as impersonate.{key}")
        names[key] = frozenset(listed)
    return names


def differences(stated: Mapping[str, frozenset[str]], enrolled: Mapping[str, list[str]]) -> list[Difference]:
    """Compare a file's names with those of the hub, key by key."""
    found = []
    for key in _KEYS:
        missing, extra = set(enrolled[key]) - stated[key], stated[key] - set(enrolled[key])
        if missing or extra:
            found.append(Difference(key, tuple(sorted(missing)), tuple(sorted(extra))))
    return found


def _check(
    name: str,
    file: Path,
    stated: Mapping[str, frozenset[str]] | None,
    enrolled: Mapping[str, list[str]],
    *,
    as_json: bool,
) -> None:
    """Print the differences; raises AnswerIsNo if there are any."""
    found = [] if stated is None else differences(stated, enrolled)
    if as_json:
        rows: list[Json] = [
            {"key": each.key, "missing": [*each.missing], "extra": [*each.extra]} for each in found
        ]
        document: Object = {"cluster": name, "file": str(file), "up_to_date": not found, "differences": rows}
        print_json(document)
    else:
        for each in found:
            for word, names in (("missing", each.missing), ("extra", each.extra)):
                for one in names:
                    click.echo(f"{word:7}  impersonate.{each.key}  {escape(one)}")
    if found:
        raise AnswerIsNo(
            f"not up to date: {file}; write it again with hawse admin cluster values {name}, then run "
            "helm upgrade"
        )
