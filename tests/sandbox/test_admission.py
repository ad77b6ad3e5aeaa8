"""Admission webhooks: the requests that they meet, their programs, and dry runs."""

from __future__ import annotations

import pytest

from sandbox.admission import CALLS_NAME, CALLS_NAMESPACE
from sandbox.kinds import CONFIG_MAPS, MUTATING_WEBHOOKS, PODS, VALIDATING_WEBHOOKS, Kind
from sandbox.objects import Json, Object, items, string_map, text
from sandbox.status import StatusError
from tests.sandbox.world import World

CORE = "/api/v1/namespaces/default"
MAPS = f"{CORE}/configmaps"
MAP: Object = {"metadata": {"name": "m", "labels": {"tier": "one"}}, "data": {"a": "1"}}
POD: Object = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
MERGE = "application/merge-patch+json"
RULE: Object = {"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}


def webhook(program: str, **more: Json) -> Object:
    return {
        "name": "hook.sandbox.example",
        "clientConfig": {"url": f"https://webhook.invalid/{program}"},
        "rules": [RULE],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        **more,
    }


async def configure(world: World, hook: Object, kind: Kind = VALIDATING_WEBHOOKS) -> Object:
    value: Object = {"metadata": {"name": "hooks"}, "webhooks": [hook]}
    return await world.object("POST", f"{kind.prefix}/{kind.resource}", value)


async def refusal(world: World, method: str, target: str, body: Json = None) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await world.ask(method, target, body)
    return caught.value


def calls(world: World) -> str:
    """How often the program `record` was called."""
    item = world.store.collection("", "configmaps").get(CALLS_NAMESPACE, CALLS_NAME)
    return text(item.value, "data", "hook.sandbox.example") if item is not None else "0"


@pytest.mark.parametrize("effects", ["Some", "Unknown"])
@pytest.mark.parametrize("kind", [MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS])
@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", f"{MAPS}?dryRun=All", {"metadata": {"name": "n"}}),
        ("PUT", f"{MAPS}/m?dryRun=All", MAP),
        ("DELETE", f"{MAPS}/m?dryRun=All", None),
        ("DELETE", f"{MAPS}?dryRun=All", None),
        ("POST", f"{CORE}/pods/p/eviction?dryRun=All", {"metadata": {"name": "p"}}),
    ],
)
async def test_a_webhook_with_side_effects_refuses_a_dry_run(
    world: World, effects: str, kind: Kind, method: str, target: str, body: Json
) -> None:
    await world.object("POST", MAPS, MAP)
    await world.object("POST", f"{CORE}/pods", POD)
    await configure(world, webhook("record", sideEffects=effects), kind)
    error = await refusal(world, method, target, body)
    assert (error.code, error.reason) == (400, "BadRequest")
    assert error.message == 'admission webhook "hook.sandbox.example" does not support dry run'
    assert calls(world) == "0"


async def test_a_webhook_with_side_effects_is_called_for_the_write(world: World) -> None:
    await configure(world, webhook("record", sideEffects="Some"))
    await world.object("POST", MAPS, MAP)
    assert calls(world) == "1"


@pytest.mark.parametrize(("effects", "counted"), [("None", "1"), ("NoneOnDryRun", "0")])
async def test_a_webhook_without_side_effects_is_called_in_a_dry_run(
    world: World, effects: str, counted: str
) -> None:
    await configure(world, webhook("record", sideEffects=effects))
    await world.object("POST", f"{MAPS}?dryRun=All", MAP)
    assert calls(world) == counted


async def test_a_mutating_webhook_changes_what_is_stored_and_what_a_dry_run_shows(world: World) -> None:
    await configure(world, webhook("label"), MUTATING_WEBHOOKS)
    tried = await world.object("POST", f"{MAPS}?dryRun=All", MAP)
    made = await world.object("POST", MAPS, MAP)
    expected = {"tier": "one", "sandbox.example/webhook": "seen"}
    assert string_map(tried, "metadata", "labels") == string_map(made, "metadata", "labels") == expected


async def test_a_random_value_differs_between_two_dry_runs(world: World) -> None:
    await configure(world, webhook("random"), MUTATING_WEBHOOKS)
    tried = [await world.object("POST", f"{MAPS}?dryRun=All", MAP) for _ in range(2)]
    values = {text(each, "metadata", "annotations", "sandbox.example/random") for each in tried}
    assert (len(values), "" in values) == (2, False)


@pytest.mark.parametrize("query", ["", "?dryRun=All"])
async def test_a_denial_names_the_webhook(world: World, query: str) -> None:
    await configure(world, webhook("deny"))
    error = await refusal(world, "POST", f"{MAPS}{query}", MAP)
    assert (error.code, error.reason) == (403, "Forbidden")
    assert error.message.startswith('admission webhook "hook.sandbox.example" denied the request: ')
    assert "m" not in world.names(CONFIG_MAPS)


async def test_a_webhook_that_cannot_be_reached_fails_the_request_or_is_ignored(world: World) -> None:
    service: Object = {"service": {"namespace": "hooks", "name": "hook", "path": "/admit"}}
    await configure(world, webhook("", clientConfig=service))
    error = await refusal(world, "POST", MAPS, MAP)
    assert (error.code, error.reason) == (500, "InternalError")
    assert 'failed calling webhook "hook.sandbox.example"' in error.message
    assert "https://hook.hooks.svc:443/admit" in error.message
    target = f"{VALIDATING_WEBHOOKS.prefix}/{VALIDATING_WEBHOOKS.resource}/hooks"
    await world.object("DELETE", target)
    await configure(world, webhook("", clientConfig=service, failurePolicy="Ignore"))
    await world.object("POST", MAPS, MAP)


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ({}, True),
        ({"operations": ["CREATE", "DELETE"]}, False),
        ({"apiGroups": [""]}, False),
        ({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"]}, True),
        ({"resources": ["deployments/*"]}, True),
        ({"resources": ["*/scale"]}, True),
        ({"resources": ["deployments"]}, False),
        ({"resources": ["*"]}, False),
        ({"scope": "Cluster"}, False),
        ({"scope": "Namespaced"}, True),
    ],
)
async def test_rules_select_requests(world: World, rule: Object, met: bool) -> None:
    web: Object = {
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": POD["spec"]},
        },
    }
    await world.object("POST", DEPLOYMENTS, web)
    await configure(world, webhook("record", rules=[{**RULE, **rule}]))
    await world.object("PATCH", f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": 3}}, content_type=MERGE)
    assert calls(world) == ("1" if met else "0")


@pytest.mark.parametrize(
    ("selector", "met"),
    [
        ({"objectSelector": {"matchLabels": {"tier": "one"}}}, True),
        ({"objectSelector": {"matchLabels": {"tier": "two"}}}, False),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}, True),
        (
            {"namespaceSelector": {"matchExpressions": [{"key": "quiet", "operator": "Exists"}]}},
            False,
        ),
    ],
)
async def test_selectors_select_objects(world: World, selector: Object, met: bool) -> None:
    await world.object("POST", MAPS, MAP)
    await configure(world, webhook("record", **selector))
    await world.object("DELETE", f"{MAPS}/m")
    assert calls(world) == ("1" if met else "0")


async def test_no_webhook_prevents_its_own_removal(world: World) -> None:
    await configure(world, webhook("deny"))
    target = f"{VALIDATING_WEBHOOKS.prefix}/{VALIDATING_WEBHOOKS.resource}/hooks"
    await world.object("DELETE", target)
    await world.object("POST", MAPS, MAP)


async def test_an_eviction_is_one_call(world: World) -> None:
    await world.object("POST", f"{CORE}/pods", POD)
    await configure(world, webhook("record"))
    await world.object("POST", f"{CORE}/pods/p/eviction", {"metadata": {"name": "p"}})
    assert (calls(world), world.names(PODS)) == ("1", [])


async def test_the_rest_is_defaulted(world: World) -> None:
    made = await configure(world, webhook("allow"), MUTATING_WEBHOOKS)
    [hook] = items(made, "webhooks")
    assert (hook["failurePolicy"], hook["reinvocationPolicy"], hook["timeoutSeconds"]) == (
        "Fail",
        "Never",
        10,
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"name": "hook"}, "webhooks[0].name"),
        ({"clientConfig": {}}, "webhooks[0].clientConfig"),
        ({"sideEffects": None}, "must specify one of None, NoneOnDryRun"),
        ({"admissionReviewVersions": []}, "must specify one of v1, v1beta1"),
    ],
)
async def test_invalid_configurations_are_refused(world: World, change: Object, part: str) -> None:
    value: Object = {"metadata": {"name": "hooks"}, "webhooks": [{**webhook("allow"), **change}]}
    target = f"{VALIDATING_WEBHOOKS.prefix}/{VALIDATING_WEBHOOKS.resource}"
    error = await refusal(world, "POST", target, value)
    assert (error.code, part in error.message) == (422, True), error.message
