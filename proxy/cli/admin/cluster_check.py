"""`hawse admin cluster check`: what the hub knows against the RBAC of the cluster itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from audit.escape import escape
from proxy.cli.admin.client import AdminClient, Json, Object, Reach
from proxy.cli.admin.output import child, json_option, objects, print_json, text
from proxy.cli.errors import ANSWER_NO, CommandError
from proxy.process.untrusted_json import read_json

if TYPE_CHECKING:
    from proxy.cli.admin.rbac_check import Enrolled

# klog's form, as in E1130 19:33:39.543816.
_LOGGED = re.compile(r"[IWEF][0-9]{4} [0-9]{2}:")
# A large cluster has some thousand bindings; an operator waits for this.
TIMEOUT_S = 60


@click.command("check")
@click.argument("name")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Yours, not the relay's: it must let you read roles and bindings.",
)
@click.option("--context", metavar="NAME", help="Of the kubeconfig; its current one if absent.")
@json_option
@click.pass_obj
def check_cluster(reach: Reach, /, name: str, kubeconfig: Path, context: str | None, as_json: bool) -> None:
    """Compare a cluster's RBAC with what is enrolled here.

    Before its relay is set up, and ever after. Warns of names in the form of Hawse's own (agent:…, <org>/…)
    that already have rights there and belong to nobody enrolled, and says whether the relay may impersonate
    all that are, nobody else, and nothing more. Says whether a relay is connected, and refuses the kubeconfig
    of another cluster than the relay's. Runs kubectl, which must be installed. Exits 3 when there is anything
    to do, 0 when not.
    """
    from proxy.cli.admin.rbac_check import Level, examine, examine_relays, sort_findings
    from proxy.kubernetes.manifests import CLUSTER_ROLE

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
        click.echo(f"cluster {name}: {len(todo)} to look at" if todo else f"cluster {name}: all is well")
    if todo:
        click.get_current_context().exit(ANSWER_NO)


def _check_same_cluster(name: str, pinned: str, options: list[str]) -> None:
    """Raise CommandError for a kubeconfig that leads to another cluster than the one that is pinned.

    Findings from another cluster mean nothing, and applying the advice there does harm.
    """
    from proxy.kubernetes.manifests import SYSTEM_NAMESPACE

    if not pinned:
        return
    namespace = _kubectl(*options, "get", "namespace", SYSTEM_NAMESPACE)
    uid = text(child(namespace, "metadata"), "uid")
    if uid != pinned:
        raise CommandError(
            f"the kubeconfig leads to another cluster than {name}: its {SYSTEM_NAMESPACE} has the uid "
            f"{escape(uid[:64])}, and {name} is pinned to {pinned}; give the kubeconfig of {name}, or, if it "
            f"was rebuilt, run hawse admin cluster repin {name}"
        )


def _enrolled(client: AdminClient, name: str) -> Enrolled:
    """What the hub knows; raises CommandError."""
    from auth.principal import USER_PREFIX
    from proxy.cli.admin.rbac_check import Enrolled
    from proxy.cli.admin.rendered import impersonated

    hub = client.get("hub")
    org = text(hub, "org")
    agents, groups = impersonated(client.get("clusters", name, "rbac"))
    known = {f"{USER_PREFIX}{text(agent, 'name')}" for agent in objects(client.get("agents"), "agents")}
    known |= {f"{org}/{text(team, 'name')}" for team in objects(client.get("teams"), "teams")}
    users = frozenset(f"{USER_PREFIX}{agent}" for agent in agents)
    return Enrolled(name, org, users, frozenset(groups), frozenset(known))


def _kubectl(*args: str) -> Object:
    """Ask the cluster, as the kubeconfig's user; an empty answer is an empty object. Raises CommandError."""
    program = shutil.which("kubectl")
    if program is None:
        raise CommandError("kubectl is not on the PATH: install it, or run this where it is")
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own kubectl, a list and no shell
            [program, *args, "--output", "json", f"--request-timeout={TIMEOUT_S}s"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"kubectl could not be asked: {error}") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        # Its own log comes before what it says to a person, and in several copies.
        said = " ".join([line for line in lines if not _LOGGED.match(line)] or lines)
        raise CommandError(f"kubectl failed: {escape(' '.join(said.split())[:500])}")
    if not done.stdout.strip():
        return {}
    try:
        document: Json = read_json(done.stdout)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CommandError("kubectl answered with something that is no object in JSON")
    return document
