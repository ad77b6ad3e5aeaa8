"""`hawse admin cluster check`: compare the hub's data with the cluster's own RBAC."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from audit.escape import escape
from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.cli.errors import ANSWER_NO, CommandError
from proxy.cli.output import Json, Object, child, json_option, objects, print_json, text
from proxy.process.untrusted_json import read_json

if TYPE_CHECKING:
    from proxy.cli.admin.cluster.rbac_check import Enrolled

# The form of klog's lines, such as E1130 19:33:39.543816.
_LOGGED = re.compile(r"[IWEF][0-9]{4} [0-9]{2}:")
# A large cluster has some thousand bindings. An operator waits for it.
TIMEOUT_S = 60


@click.command("check")
@click.argument("name")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Your own kubeconfig, not the relay's: it must allow reading roles and bindings.",
)
@click.option("--context", metavar="NAME", help="A context of the kubeconfig. Default: its current one.")
@json_option
@click.pass_obj
def check_cluster(reach: Reach, /, name: str, kubeconfig: Path, context: str | None, as_json: bool) -> None:
    """Compare a cluster's RBAC with the hub's agents and teams.

    Run it before the relay is set up, and at any time later. It warns about names of Hawse's form (agent:…,
    <org>/…) that have rights in the cluster but are not enrolled. It checks that the relay may impersonate
    all enrolled agents, no other users, and has no other rights. It checks that a relay is connected.

    It refuses the kubeconfig of another cluster. It needs kubectl. Exit status: 0 if nothing is to do, else
    3.
    """
    from proxy.cli.admin.cluster.rbac_check import Level, examine, examine_relays, sort_findings
    from proxy.kubernetes.cluster_role import CLUSTER_ROLE

    client = reach.client()
    enrolled = _enrolled(client, name)
    shown = client.get("clusters", name)
    relays = [row for row in objects(client.get("relays"), "relays") if row.get("cluster") == name]
    options = ["--kubeconfig", str(kubeconfig), *(["--context", context] if context is not None else [])]
    _check_same_cluster(name, text(shown, "cluster_uid"), options)
    listed = _kubectl(*options, "get", "clusterrolebindings,rolebindings", "--all-namespaces")
    role = _kubectl(*options, "get", "clusterrole", CLUSTER_ROLE, "--ignore-not-found")
    findings = examine(enrolled, objects(listed, "items"), role or None, ["kubectl", *options])
    findings = sort_findings([*findings, *examine_relays(shown, relays)])
    todo = [finding for finding in findings if finding.level is not Level.INFO]
    if as_json:
        print_json(
            {
                "cluster": name,
                "ok": not todo,
                "findings": [
                    {"level": str(f.level), "check": f.check, "message": f.message, "fix": f.fix}
                    for f in findings
                ],
            }
        )
    else:
        for finding in findings:
            click.echo(f"{finding.level.upper():8} {escape(finding.message)}")
            if finding.fix:
                click.echo(f"{'':8} {escape(finding.fix)}")
        click.echo(f"cluster {name}: {len(todo)} to fix" if todo else f"cluster {name}: no problems found")
    if todo:
        click.get_current_context().exit(ANSWER_NO)


def _check_same_cluster(name: str, pinned: str, options: list[str]) -> None:
    """Raise CommandError if the kubeconfig leads to another cluster than the pinned one.

    Findings from another cluster mean nothing, and applying their fixes there does harm.
    """
    from proxy.kubernetes.cluster_role import SYSTEM_NAMESPACE

    if not pinned:
        return
    namespace = _kubectl(*options, "get", "namespace", SYSTEM_NAMESPACE)
    uid = text(child(namespace, "metadata"), "uid")
    if uid != pinned:
        raise CommandError(
            f"the kubeconfig leads to another cluster than {name}: its {SYSTEM_NAMESPACE} has the uid "
            f"{escape(uid[:64])}, and {name} is pinned to {pinned}; use the kubeconfig of {name}, or, if it "
            f"was rebuilt, run hawse admin cluster repin {name}"
        )


def _enrolled(client: AdminClient, name: str) -> Enrolled:
    """Return the users and groups of the hub; raises CommandError."""
    from auth.principal import USER_PREFIX
    from proxy.cli.admin.cluster.manifests import impersonated
    from proxy.cli.admin.cluster.rbac_check import Enrolled

    hub = client.get("hub")
    org = text(hub, "org")
    agents, groups = impersonated(client.get("clusters", name, "rbac"))
    known = {f"{USER_PREFIX}{text(agent, 'name')}" for agent in objects(client.get("agents"), "agents")}
    known |= {f"{org}/{text(team, 'name')}" for team in objects(client.get("teams"), "teams")}
    users = frozenset(f"{USER_PREFIX}{agent}" for agent in agents)
    return Enrolled(name, org, users, frozenset(groups), frozenset(known))


def _kubectl(*args: str) -> Object:
    """Run kubectl as the kubeconfig's user. Empty output is an empty object. Raises CommandError."""
    program = shutil.which("kubectl")
    if program is None:
        raise CommandError("kubectl is not on the PATH: install it, or run this on a machine that has it")
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own kubectl, a list and no shell
            [program, *args, "--output", "json", f"--request-timeout={TIMEOUT_S}s"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"cannot run kubectl: {error}") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        # kubectl's log lines precede its message, and repeat it.
        message = " ".join([line for line in lines if not _LOGGED.match(line)] or lines)
        raise CommandError(f"kubectl failed: {escape(' '.join(message.split())[:500])}")
    if not done.stdout.strip():
        return {}
    try:
        document: Json = read_json(done.stdout)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CommandError("kubectl did not answer with a JSON object")
    return document
