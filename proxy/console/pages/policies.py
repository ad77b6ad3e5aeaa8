"""Policies: the list, the text of one with its rules marked, the versions, and the difference of two."""

from __future__ import annotations

from proxy.console.base.api import at
from proxy.console.base.routes import Ask, Page, Route
from proxy.console.views.policies import changes, counted, marked, rules_of


async def show_all(ask: Ask) -> Page:
    """Show the policies in force."""
    found = await ask.api.get("/v1/policies")
    rows = [{**policy, "counted": counted(rules_of(policy))} for policy in found["policies"]]
    return Page("policies.html", "Policies", {"rows": rows, "found": found})


async def show(ask: Ask) -> Page:
    """Show the text of one policy, as it is or as it was at a version."""
    name = ask.path("name")
    policy = await ask.api.get(at("/v1/policies/{}", name), version=ask.query("version"))
    current = policy["version"]
    if "binds" not in policy:
        current = (await ask.api.get("/v1/policies"))["version"]
    rules = rules_of(policy)
    shown = {
        "policy": policy,
        "rules": rules,
        "blocks": marked(policy["document"], rules),
        "counted": counted(rules),
        "current": current,
    }
    return Page("policy.html", name, shown)


async def show_versions(ask: Ask) -> Page:
    """Show the versions that are kept."""
    versions = (await ask.api.get("/v1/policy-versions"))["versions"]
    before = [version["version"] for version in versions[1:]]
    rows = [
        {**version, "before": previous} for version, previous in zip(versions, [*before, None], strict=True)
    ]
    return Page("versions.html", "Versions of the policies", {"rows": rows})


async def show_diff(ask: Ask) -> Page:
    """Show the difference of two versions; by default, what the last change was."""
    versions = (await ask.api.get("/v1/policy-versions"))["versions"]
    kept = [str(version["version"]) for version in versions]
    after = ask.query("after") or kept[0]
    before = ask.query("before") or next((one for one in kept if int(one) < _number(after)), kept[-1])
    found = await ask.api.get(at("/v1/policy-versions/{}/diff/{}", before, after))
    shown = {"kept": kept, "found": found, "changes": changes(found["diff"])}
    return Page("diff.html", f"Version {before} to {after}", shown)


def _number(text: str) -> int:
    """Read a version's number; a malformed one is refused by the API."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


ROUTES = (
    Route("GET", "/policies", "viewer", show_all, "policies"),
    Route("GET", "/policy-versions", "viewer", show_versions, "policies"),
    Route("GET", "/policy-diff", "viewer", show_diff, "policies"),
    Route("GET", "/policies/{name}", "viewer", show, "policies"),
)
