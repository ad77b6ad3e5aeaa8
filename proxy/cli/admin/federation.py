"""`hawse admin federation`."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.admin.client import Object, Reach
from proxy.cli.admin.inputs import parse_pairs, read_certificates, read_file
from proxy.cli.admin.output import (
    child,
    field,
    json_option,
    objects,
    print_json,
    print_table,
    say,
    since,
    tell_change,
    text,
)

# A key set or a CA bundle has some kilobytes.
FILE_BYTES_MAX = 256 * 1024


@click.group()
def federation() -> None:
    """Workloads known by their platform's token (OpenID Connect)."""


@federation.command("list")
@json_option
@click.pass_obj
def list_rules(reach: Reach, /, as_json: bool) -> None:
    """List the rules: tokens with which claims are which agent's."""
    columns = [
        ("AGENT", field("agent")),
        ("ISSUER", field("issuer")),
        ("CLAIMS", _claims),
        ("AUDIENCE", field("audience")),
        ("ID", field("id")),
        ("LAST USED", since("last_used_at")),
    ]
    rules = objects(reach.client().get("federation"), "rules")
    print_table(
        rules,
        columns,
        as_json=as_json,
        empty="no rules yet: hawse admin federation add ISSUER --agent NAME --claim NAME=VALUE",
        spare=("LAST USED", "AUDIENCE", "ISSUER"),
    )


@federation.command("add")
@click.argument("issuer")
@click.option("--agent", required=True, metavar="NAME", help="Whose tokens these are.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="A claim that must have exactly this value; repeatable. A NAME that begins with a slash is a JSON "
    "Pointer into the token, as in /kubernetes.io/serviceaccount/uid.",
)
@click.option("--audience", metavar="TEXT", help="What the token must be for (default: the hub's own URL).")
@click.option("--jwks-url", metavar="URL", help="Where the issuer's keys are (default: as it says itself).")
@click.option(
    "--jwks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The issuer's keys, for one that the hub cannot reach; nothing is fetched then.",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The CA of the issuer's certificate (PEM), if it is not a public one.",
)
@click.option(
    "--allow-private-address", is_flag=True, help="The issuer may be at a private or loopback address."
)
@click.option(
    "--allow-mutable-claims",
    is_flag=True,
    help="Accept claims of which none is an id that is never given twice.",
)
@json_option
@click.pass_obj
def add_rule(
    reach: Reach,
    /,
    issuer: str,
    agent: str,
    claims: tuple[str, ...],
    audience: str | None,
    jwks_url: str | None,
    jwks: Path | None,
    ca: Path | None,
    allow_private_address: bool,
    allow_mutable_claims: bool,
    as_json: bool,
) -> None:
    """Let tokens of ISSUER with exactly these claims be an agent's.

    ISSUER is what its tokens name as `iss`, to the last slash, as in
    https://token.actions.githubusercontent.com. Pin an id that is never given twice (repository_id,
    /kubernetes.io/serviceaccount/uid), for a name that is given up can be taken by another. The rule for a
    GitHub repository should pin `ref` or `environment` as well: otherwise every branch of it is this agent.
    """
    made = reach.client().post(
        "federation",
        body={
            "issuer": issuer,
            "agent": agent,
            "claims": parse_pairs(claims, "--claim"),
            "audience": audience,
            "jwks_url": jwks_url,
            "jwks": read_file(jwks, "--jwks", FILE_BYTES_MAX),
            "ca_pem": read_certificates(ca, "--ca", FILE_BYTES_MAX),
            "address_private": allow_private_address,
            "mutable_claims": allow_mutable_claims,
        },
    )
    if as_json:
        print_json(made)
        return
    say(
        f"tokens of {text(made, 'issuer')} for {text(made, 'audience')} "
        f"with {_claims(made)} are agent {agent}"
    )
    say("where the agent runs: hawse login --hub URL --token-file FILE, or --github")


@federation.command("remove")
@click.argument("rule_id")
@json_option
@click.pass_obj
def remove_rule(reach: Reach, /, rule_id: str, as_json: bool) -> None:
    """Remove a rule, by its id (`hawse admin federation list`)."""
    gone = reach.client().delete("federation", rule_id)
    done = f"removed rule {rule_id}; tokens that were made by it are refused from now on"
    tell_change(gone, done, as_json=as_json)


def _claims(row: Object) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(child(row, "claims").items()))
