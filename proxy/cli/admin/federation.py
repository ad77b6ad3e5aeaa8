"""`hawse admin federation`."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.api.inputs import parse_pairs, read_certificates, read_file
from proxy.cli.output import (
    Object,
    child,
    field,
    json_option,
    objects,
    print_change,
    print_json,
    print_table,
    say,
    since,
    text,
)

# A key set or a CA bundle has some kilobytes.
FILE_BYTES_MAX = 256 * 1024


@click.group()
def federation() -> None:
    """Log workloads in by their platform's token (OpenID Connect)."""


@federation.command("list")
@json_option
@click.pass_obj
def list_rules(reach: Reach, /, as_json: bool) -> None:
    """List the rules. Each maps tokens with certain claims to an agent."""
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
@click.option("--agent", required=True, metavar="NAME", help="The agent that these tokens log in.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="A claim with its exact value; repeatable. A NAME that begins with a slash is a JSON Pointer into "
    "the token, such as /kubernetes.io/serviceaccount/uid.",
)
@click.option("--audience", metavar="TEXT", help="The tokens' audience. Default: the hub's own URL.")
@click.option(
    "--jwks-url", metavar="URL", help="The URL of the issuer's keys. Default: from its discovery document."
)
@click.option(
    "--jwks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The issuer's keys, if the hub cannot reach the issuer. Nothing is fetched then.",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The CA of the issuer's certificate (PEM), unless it is a public CA.",
)
@click.option(
    "--allow-private-address", is_flag=True, help="Allow an issuer at a private or loopback address."
)
@click.option(
    "--allow-mutable-claims",
    is_flag=True,
    help="Allow a rule in which no claim is an id that is never reused.",
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
    """Log tokens of ISSUER with exactly these claims in as an agent.

    ISSUER is the `iss` of the tokens, exact to the last slash, such as
    https://token.actions.githubusercontent.com. Include an id that is never reused (repository_id,
    /kubernetes.io/serviceaccount/uid), since a released name can be taken by another party. For a GitHub
    repository, also include `ref` or `environment`: otherwise every branch is this agent.
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
        f"with {_claims(made)} now log in agent {agent}"
    )
    say("on the agent's machine: hawse login --hub URL --token-file FILE, or --github")


@federation.command("remove")
@click.argument("rule_id")
@json_option
@click.pass_obj
def remove_rule(reach: Reach, /, rule_id: str, as_json: bool) -> None:
    """Remove a rule by its id. For the id: hawse admin federation list."""
    gone = reach.client().delete("federation", rule_id)
    done = f"removed rule {rule_id}; tokens issued under it are refused from now on"
    print_change(gone, done, as_json=as_json)


def _claims(row: Object) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(child(row, "claims").items()))
