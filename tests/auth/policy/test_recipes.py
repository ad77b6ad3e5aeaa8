"""The recipes in docs/approvals.md do what the page says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from auth.policy.bundled import first_sources
from auth.policy.match import Bundle, compile_bundle
from proxy.hub.authorize.warnings import ask_warnings
from tests.auth.policies import CONDITIONS, Agent, ask, sources

PAGE = (Path(__file__).parents[3] / "docs" / "approvals.md").read_text()
SHOP = "/api/v1/namespaces/shop"
RELEASE = f"{SHOP}/secrets/sh.helm.release.v1.web.v1"


def recipe(name: str) -> Bundle:
    """The policy of this name, beside those of a new hub."""
    start = rf"^    kind: Policy\n    metadata: {{name: {name}\b"
    found = re.search(rf"{start}(?:.*\n(?=    |\n    ))*.*", PAGE, re.MULTILINE)
    assert found is not None, name
    return compile_bundle([*first_sources(), *sources(textwrap.dedent(found[0]))], CONDITIONS)


@pytest.mark.parametrize(
    ("name", "request_line", "effect", "rule"),
    [
        ("on-call", f"GET {SHOP}/pods/web/exec?command=sh&stdin=true", "ask", "on-call/shell"),
        ("on-call", f"DELETE {SHOP}/pods/web", "ask", "on-call/change"),
        ("on-call", f"GET {SHOP}/pods/web/log", "allow", "granted/granted"),
        # `granted` would allow it.
        ("on-call", f"GET {SHOP}/secrets/db", "deny", "on-call/secrets"),
        ("deployer", f"PATCH {SHOP}/configmaps/web", "allow", "deployer/deploy"),
        ("deployer", f"DELETE {SHOP}/configmaps/web", "ask", "deployer/destructive"),
        ("deployer", f"DELETE {SHOP}/secrets", "ask", "deployer/destructive"),
        # Each `helm upgrade` deletes one, from the eleventh on.
        ("deployer", f"DELETE {RELEASE}", "allow", "deployer/deploy"),
        (
            "deployer",
            "POST /apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles",
            "ask",
            "deployer/rbac",
        ),
        ("helper", f"DELETE {SHOP}/pods/web", "ask", "helper/ask-me"),
        ("helper", f"GET {SHOP}/secrets/db", "deny", "helper/secrets"),
    ],
)
def test_a_recipe_decides_as_the_page_says(name: str, request_line: str, effect: str, rule: str) -> None:
    decision = ask(recipe(name), request_line, agent=Agent(name))
    assert (decision.effect, f"{decision.policy}/{decision.rule}") == (effect, rule)


def test_the_on_call_agent_may_ask_for_a_shell_of_15_minutes() -> None:
    request = f"GET {SHOP}/pods/web/exec?command=sh&stdin=true"
    decision = ask(recipe("on-call"), request, agent=Agent("on-call"))
    assert decision.ask is not None
    assert decision.ask.interactive
    assert decision.max_duration_s == 15 * 60


@pytest.mark.parametrize("name", ["on-call", "deployer", "helper"])
def test_apply_warns_of_nothing_in_a_recipe(name: str) -> None:
    assert ask_warnings(recipe(name), [name]) == []
