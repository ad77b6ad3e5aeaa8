"""`hawse admin policy`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.policy.decisions import DECIDED, print_decision
from proxy.cli.admin.policy.differences import as_written, fault_line, print_differences
from proxy.cli.admin.policy.files import files_argument, padded, read_files, say_missing
from proxy.cli.admin.policy.simulation import simulate_policies
from proxy.cli.errors import ANSWER_NO, AnswerIsNo, CommandError
from proxy.cli.output import (
    Object,
    confirm,
    field,
    json_option,
    listed,
    objects,
    print_json,
    print_table,
    say,
    text,
    texts,
    yes_option,
)
from proxy.cli.output import since as how_long
from proxy.process.plural import counted

if TYPE_CHECKING:
    from auth.policy.text import Source


@click.group()
def policy() -> None:
    """Manage policies: what agents may do, before RBAC decides.

    Policies are YAML in the style of RBAC: for an example, run `hawse admin policy show guard`. A change is
    validated as a whole, applies from the next call on without a restart, and is recorded.
    """


@policy.command("list")
@json_option
@click.pass_obj
def list_policies(reach: Reach, /, as_json: bool) -> None:
    """List the policies in force."""
    found = reach.client().get("policies")
    if as_json:
        print_json(found)
        return
    columns = [
        ("POLICY", field("name")),
        ("TEAMS", listed("teams")),
        ("AGENTS", listed("agents")),
        ("RULES", _rules),
        ("ASK", lambda row: text(row, "contact") or text(row, "owner") or "-"),
    ]
    print_table(
        objects(found, "policies"),
        columns,
        as_json=False,
        empty="no policies, so every call is denied: hawse admin policy apply FILE",
        spare=("ASK",),
    )
    say(f"bundle {text(found, 'bundle')}, applied {how_long('applied_at')(found)}")


def _rules(row: Object) -> str:
    rules = objects(row, "rules")
    off = sum(rule.get("enabled") is False for rule in rules)
    asking = sum(rule.get("effect") == "ask" and rule.get("enabled") is not False for rule in rules)
    parts = [f"{count} {word}" for count, word in ((asking, "ask"), (off, "off")) if count]
    return f"{len(rules)} ({', '.join(parts)})" if parts else str(len(rules))


@policy.command("show")
@click.argument("name", required=False)
@click.option("--version", "number", type=int, metavar="N", help="Show the policies of version N.")
@json_option
@click.pass_obj
def show_policy(reach: Reach, /, name: str | None, number: int | None, as_json: bool) -> None:
    """Print a policy as it was written, or all policies."""
    client = reach.client()
    if number is not None:
        if name is not None:
            raise CommandError("name a policy or a --version, not both: a version is shown as a whole")
        found = client.get("policy-versions", str(number))
        documents = texts(found, "documents")
    elif name is not None:
        found = client.get("policies", name)
        documents = [text(found, "document")]
    else:
        found = client.get("policies")
        documents = [text(row, "document") for row in objects(found, "policies")]
    if as_json:
        print_json(found)
        return
    click.echo(
        "---\n".join("".join(f"{as_written(line)}\n" for line in each.splitlines()) for each in documents),
        nl=False,
    )


@policy.command("versions")
@json_option
@click.pass_obj
def list_versions(reach: Reach, /, as_json: bool) -> None:
    """List the policy bundles, newest first. The audit trail refers to them."""
    found = objects(reach.client().get("policy-versions"), "versions")
    columns = [("VERSION", field("version")), ("HASH", field("hash")), ("APPLIED", field("applied_at"))]
    print_table(found, columns, as_json=as_json, empty="no versions")


@policy.command("diff")
@click.argument("before", metavar="VERSION")
@click.argument("after", metavar="[VERSION]", required=False)
@json_option
@click.pass_obj
def diff_versions(reach: Reach, /, before: str, after: str | None, as_json: bool) -> None:
    """Show what changed between two versions of the policies, by rule.

    Without a second VERSION, compare with the policies in force. `hawse admin policy versions` lists them.
    Layout and comments alone are no difference of a rule.
    """
    client = reach.client()
    if after is None:
        after = text(client.get("policies"), "version")
    found = client.get("policy-versions", before, "diff", after)
    if as_json:
        print_json(found)
    else:
        print_differences(objects(found, "diff"))


@policy.command("apply")
@files_argument
@click.option("--only", is_flag=True, help="Remove all policies that are not in these files.")
@click.option("--dry-run", is_flag=True, help="Change nothing. Print the difference, by rule.")
@yes_option
@json_option
@click.pass_obj
def apply_policies(
    reach: Reach, /, files: tuple[Path, ...], only: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Apply policies, replacing those of the same names.

    A FILE may hold several policies, separated by ---; a dash reads standard input. If any file has a fault,
    nothing changes and all faults are listed with their lines. Test cases (kind: PolicyTest) run first: if
    one fails, nothing is applied (exit status 3). Names of teams, agents or clusters that do not exist yet
    cause a warning only.
    """
    from proxy.cli.admin.policy.tests import sorted_out

    sources = read_files(files)
    policies, tests = sorted_out(sources)
    if tests:
        _run_tests(policies, tests, as_json=False, quiet=True)
    body = {"files": [{"name": source.file, "text": padded(source)} for source in policies], "only": only}
    if dry_run:
        # In the body too: an older hub refuses it there, and would ignore the query and apply.
        done = reach.client().post("policies", body={**body, "dry_run": True}, dry_run="true")
        _print_dry_run(done, as_json=as_json)
        return
    if only:
        confirm("Remove every policy that is not in these files?", yes=yes)
    done = reach.client().post("policies", body=body)
    _print_change(done, as_json=as_json)
    # Older hubs don't report missing names.
    say_missing(objects(done, "missing") if "missing" in done else [])
    for warning in texts(done, "warnings"):
        say(f"warning: {warning}")


@policy.command("remove")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def remove_policy(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Remove a policy. Calls that no other policy allows are denied from then on."""
    confirm(f"Remove policy {name}?", yes=yes)
    _print_change(reach.client().delete("policies", name), as_json=as_json)


@policy.command("enable")
@click.argument("name", metavar="POLICY")
@click.argument("rules", nargs=-1, required=True, metavar="RULE...")
@json_option
@click.pass_obj
def enable_rules(reach: Reach, /, name: str, rules: tuple[str, ...], as_json: bool) -> None:
    """Turn rules of a policy on, such as: enable guard secrets."""
    _switch(reach, name, rules, enabled=True, as_json=as_json)


@policy.command("disable")
@click.argument("name", metavar="POLICY")
@click.argument("rules", nargs=-1, required=True, metavar="RULE...")
@json_option
@click.pass_obj
def disable_rules(reach: Reach, /, name: str, rules: tuple[str, ...], as_json: bool) -> None:
    """Turn rules of a policy off, such as: disable guard nodes-proxy."""
    _switch(reach, name, rules, enabled=False, as_json=as_json)


@policy.command("guard")
@json_option
@click.pass_obj
def show_guard(reach: Reach, /, as_json: bool) -> None:
    """List the rules of the guard policy, and whether they are on."""
    found = reach.client().get("policies", "guard")
    columns = [
        ("RULE", field("id")),
        ("STATE", _state),
        ("WHY", field("reason")),
    ]
    print_table(objects(found, "rules"), columns, as_json=as_json, empty="the guard has no rules")


def _state(row: Object) -> str:
    if not row.get("enabled"):
        return "off"
    return "asks" if row.get("effect") == "ask" else "on"


def _switch(reach: Reach, name: str, rules: tuple[str, ...], *, enabled: bool, as_json: bool) -> None:
    body = {"rules": rules, "enabled": enabled}
    _print_change(reach.client().put("policies", name, "rules", body=body), as_json=as_json)


def _print_dry_run(done: Object, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    if faults := objects(done, "faults"):
        raise CommandError("\n".join(map(fault_line, faults)))
    if not as_json:
        print_differences(objects(done, "diff"))
    for warning in texts(done, "warnings"):
        say(f"warning: {warning}")
    say(f"nothing is changed: bundle {text(done, 'bundle')} stays in force")


def _print_change(done: Object, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    changes = [(what, name) for what in ("added", "edited", "removed") for name in texts(done, what)]
    for what, name in changes:
        say(f"{what} policy {name}")
    if not changes:
        say("no policy has changed")
    say(f"bundle {text(done, 'bundle')} is in force")


@policy.command("explain")
@click.argument("agent")
@click.argument("cluster")
@click.argument("verb")
@click.argument("resource")
@click.argument("name", required=False, default="")
@click.option("-n", "--namespace", default="", metavar="NAME", help="The object's namespace.")
@click.option("--group", default="", metavar="GROUP", help="The API group; or use deployments.apps.")
@click.option("--upgrade", is_flag=True, help="Treat it as a WebSocket or SPDY request.")
@json_option
@click.pass_obj
def explain(
    reach: Reach,
    /,
    agent: str,
    cluster: str,
    verb: str,
    resource: str,
    name: str,
    namespace: str,
    group: str,
    upgrade: bool,
    as_json: bool,
) -> None:
    """Show whether a request would be allowed, and by which rule.

    The arguments are those of kubectl auth can-i: hawse admin policy explain sre-1 prod get pods/log web -n
    app-1. RESOURCE may be a path, with an HTTP method as VERB: explain sre-1 prod get /metrics. Exit status:
    3 if it is denied or needs an approval, 1 if that is unknown.
    """
    from proxy.kubernetes.described import request_for

    try:
        method, target = request_for(verb, resource, name, namespace, group)
    except ValueError as error:
        raise CommandError(str(error)) from error
    query = {"agent": agent, "cluster": cluster, "method": method, "target": target}
    if upgrade:
        query["upgrade"] = "true"
    found = reach.client().get("decision", **query)
    if as_json:
        print_json(found)
    else:
        print_decision(found)
    if not found.get("allowed"):
        click.get_current_context().exit(ANSWER_NO)


@policy.command("test")
@files_argument
@json_option
def test_policies(files: tuple[Path, ...], as_json: bool) -> None:
    """Validate policies and run their test cases (kind: PolicyTest).

    Only these files count, and no hub is needed. Exit status: 3 if a case fails, 1 if none can run because a
    file has a fault.
    """
    from proxy.cli.admin.policy.tests import sorted_out

    policies, tests = sorted_out(read_files(files))
    _run_tests(policies, tests, as_json=as_json, quiet=False)


def _run_tests(policies: list[Source], tests: list[Source], *, as_json: bool, quiet: bool) -> None:
    from auth.policy.text import PolicyError
    from proxy.cli.admin.policy.tests import compiled, read_cases, run_cases

    try:
        bundle = compiled(policies)
        cases = [case for source in tests for case in read_cases(source)]
    except PolicyError as error:
        raise CommandError(str(error)) from error
    results = run_cases(bundle, cases, time.time())
    failed = [result for result in results if not result.passed]
    if as_json:
        print_json(
            {
                "policies": [each.name for each in bundle.policies],
                "rules": sum(len(each.rules) for each in bundle.policies),
                "hash": bundle.hash,
                "cases": [
                    {
                        "file": result.case.file,
                        "line": result.case.line,
                        "agent": result.case.agent.name,
                        "cluster": result.case.cluster.name,
                        "request": result.case.asked,
                        "allowed": result.effect == "allow",
                        "effect": result.effect,
                        "rule": result.rule,
                        "passed": result.passed,
                    }
                    for result in results
                ],
            }
        )
    for result in failed:
        case = result.case
        expected = DECIDED[case.effect] + (f" by {case.rule}" if case.rule else "")
        found = f"{DECIDED[result.effect]} by {result.rule}"
        where = f"{case.file}:{case.line}: agent:{case.agent.name} on {case.cluster.name}: {case.asked}"
        say(f"{where}: expected {expected}, found {found}")
    if not quiet:
        rules = sum(len(each.rules) for each in bundle.policies)
        size = f"{counted(len(bundle.policies), 'policy', 'policies')} with {counted(rules, 'rule')}"
        passed = f"{len(results) - len(failed)} of {counted(len(results), 'case')} passed"
        say(f"no fault in {size}; {passed if results else 'no test case (kind: PolicyTest) found'}")
    if failed:
        raise AnswerIsNo(f"{len(failed)} of {counted(len(results), 'case')} failed")


policy.add_command(simulate_policies)
