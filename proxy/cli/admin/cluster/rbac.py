"""`hawse admin cluster rbac`: print a relay's ClusterRole, or keep a folder of them for a repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from audit.escape import escape
from proxy.cli.admin.api.client import Reach
from proxy.cli.errors import AnswerIsNo
from proxy.cli.output import Json, json_option, objects, print_json, say, text
from proxy.process.plural import counted

if TYPE_CHECKING:
    from proxy.cli.admin.cluster.role_files import Given, RoleFile

F = TypeVar("F", bound=Callable[..., object])


def role_options(command: F) -> F:
    """Add the options for the ClusterRole: its form and the service account it is bound to."""
    for option in (
        click.option(
            "--constrained",
            is_flag=True,
            help="Print the narrower ClusterRole for API servers from 1.36 on; older ones refuse all agents.",
        ),
        click.option("--namespace", metavar="NAME", help="The relay's namespace. Default: hawse."),
        click.option(
            "--service-account", metavar="NAME", help="The relay's service account. Default: hawse-relay."
        ),
    ):
        command = option(command)
    return command


@click.command("rbac")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="With --output-dir: a file for each cluster.")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write DIR/NAME.yaml, if it differs, instead of printing.",
)
@click.option(
    "--check", is_flag=True, help="With --output-dir: write nothing, and exit 3 if a file is not up to date."
)
@click.option(
    "--wildcard", is_flag=True, help="Allow any user and group: the cluster is then only as safe as this hub."
)
@role_options
@json_option
@click.pass_obj
def rbac(
    reach: Reach,
    /,
    name: str | None,
    every: bool,
    output_dir: Path | None,
    check: bool,
    wildcard: bool,
    constrained: bool,
    namespace: str | None,
    service_account: str | None,
    as_json: bool,
) -> None:
    """Print the relay's ClusterRole: whom it may impersonate.

    \b
    hawse admin cluster rbac prod | kubectl --context prod apply -f -
    hawse admin cluster rbac --all --output-dir rbac           (a file for each cluster, for a repository)
    hawse admin cluster rbac --all --output-dir rbac --check   (exits 3 if a file is not up to date)

    Give --namespace and --service-account if the relay does not use the defaults of the printed manifests. To
    compare with the cluster, run `hawse admin cluster check`.

    A file's first line holds the options it was written with. With --all, each file keeps them, unless you
    give others. Files of removed clusters are named and left. Files of other origin are never overwritten.
    """
    if every is (name is not None):
        raise click.UsageError("name one cluster, or give --all with --output-dir")
    if output_dir is not None:
        # Not above: the YAML library is a third of the start of a command that needs none.
        from proxy.cli.admin.cluster.role_files import Given

        given = Given(
            namespace=namespace, service_account=service_account, constrained=constrained, wildcard=wildcard
        )
        _keep(reach, output_dir, name, given, check=check, as_json=as_json)
        return
    for option, used in (("--all", every), ("--check", check), ("--json", as_json)):
        if used:
            raise click.UsageError(f"{option} goes with --output-dir only")
    from proxy.cli.admin.cluster.manifests import rendered_role

    place = {"namespace": namespace, "service_account": service_account}
    answer = reach.client().get("clusters", str(name), "rbac")
    click.echo(rendered_role(answer, place, wildcard=wildcard, constrained=constrained), nl=False)


def _keep(reach: Reach, folder: Path, name: str | None, given: Given, *, check: bool, as_json: bool) -> None:
    """Write the files that differ, or with `check` name them; raises CommandError and AnswerIsNo."""
    from proxy.cli.admin.cluster.role_files import Found, check_folder, left_over, planned, write

    check_folder(folder)
    client = reach.client()
    names = (
        [name]
        if name is not None
        else [text(row, "name") for row in objects(client.get("clusters"), "clusters")]
    )
    # All is read and compared before the first write, so that an error leaves the folder as it was.
    files = [
        planned(folder, one, client.get("clusters", one, "rbac"), given, keep=name is None)
        for one in sorted(names)
    ]
    if name is None:
        files += left_over(folder, names)
    changed = [file for file in files if file.found in (Found.MISSING, Found.BEHIND)]
    gone = [file for file in files if file.found is Found.GONE]
    for file in [] if check else changed:
        write(file)
        if not as_json:
            say(f"wrote {file.path}")
    if as_json:
        rows: list[Json] = [
            {"cluster": file.cluster, "file": file.path.name, "found": file.found} for file in files
        ]
        print_json({"output_dir": str(folder), "written": 0 if check else len(changed), "files": rows})
    elif check:
        for file in [*changed, *gone]:
            click.echo(f"{file.found:7}  {escape(str(file.path))}")
    else:
        _summarise(len(changed), len(files) - len(changed) - len(gone), gone)
    if check and (changed or gone):
        fixes = [
            *(["run the same command without --check"] if changed else []),
            *(["delete the files of clusters that are gone"] if gone else []),
        ]
        number = f"{len(changed) + len(gone)} of {counted(len(files), 'file')}"
        raise AnswerIsNo(f"not up to date in {folder}: {number}; {', and '.join(fixes)}")


def _summarise(written: int, same: int, gone: Sequence[RoleFile]) -> None:
    for file in gone:
        say(f"left {file.path}: the hub has no cluster {file.cluster}; delete the file if it was removed")
    rest = "1 is as it was" if same == 1 else f"{same} are as they were"
    say(f"wrote {counted(written, 'file')}, {rest}")
    if written:
        say("apply each to its own cluster: the objects have the same names in all clusters")
