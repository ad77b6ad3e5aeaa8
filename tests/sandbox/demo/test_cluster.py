from __future__ import annotations

import yaml

from sandbox.demo.cluster import NAMESPACE, POD, last_line, manifests


def test_the_agent_may_do_what_the_steps_do_and_only_in_its_namespace() -> None:
    role, binding, pod = yaml.safe_load_all(manifests("agent:robot", "acme/demo", 8080))
    assert {each["metadata"]["namespace"] for each in (role, binding, pod)} == {NAMESPACE}
    assert (role["kind"], binding["roleRef"]["kind"]) == ("Role", "Role")
    assert [subject["name"] for subject in binding["subjects"]] == ["agent:robot", "acme/demo"]
    granted = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert {"pods/exec", "pods/portforward", "pods/log"} <= granted
    assert not granted & {"*", "secrets"}


def test_the_pod_serves_the_port_that_is_forwarded() -> None:
    *_, pod = yaml.safe_load_all(manifests("agent:robot", "acme/demo", 8123))
    [container] = pod["spec"]["containers"]
    assert pod["metadata"]["name"] == POD
    assert "http.server 8123" in container["command"][-1]
    assert container["ports"] == [{"containerPort": 8123}]


def test_the_last_line_is_what_kubectl_means() -> None:
    assert last_line("E1 memcache\nThe connection was refused\n\n") == "The connection was refused"
    assert last_line("") == "no message"
