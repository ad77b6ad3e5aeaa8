"""What an agent's program does by each Python client: `python -m tests.system.sdks CLIENT PORT`.

The kubeconfig comes by KUBECONFIG, its current context counts. Prints a JSON object of what each step gave.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from sandbox.demo.processes import free_port

NAMESPACE, POD = "work", "workbench"
COMMAND = ["sh", "-c", "echo out; echo err >&2"]
Results = dict[str, object]


def by_kubernetes(port: int) -> Results:
    """The official client: what it streams goes over WebSockets."""
    from kubernetes import client, config, stream, watch

    config.load_kube_config()
    core = client.CoreV1Api()
    done: Results = {"list": [pod.metadata.name for pod in core.list_namespaced_pod(NAMESPACE).items]}
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="by-kubernetes"), data={"a": "b"})
    core.create_namespaced_config_map(NAMESPACE, body)
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, NAMESPACE, timeout_seconds=20):
        if event["object"].metadata.name == "by-kubernetes":
            done["watch"] = event["type"]
            watcher.stop()
    core.delete_namespaced_config_map("by-kubernetes", NAMESPACE)
    done["logs"] = core.read_namespaced_pod_log(POD, NAMESPACE)
    options = {"stdout": True, "stderr": True, "stdin": False, "tty": False}
    done["exec"] = stream.stream(
        core.connect_get_namespaced_pod_exec, POD, NAMESPACE, command=COMMAND, **options
    )
    if port:
        forward = stream.portforward(
            core.connect_get_namespaced_pod_portforward, POD, NAMESPACE, ports=str(port)
        )
        socket = forward.socket(port)
        socket.setblocking(True)
        socket.sendall(b"ping")
        done["port-forward"] = socket.recv(4).decode()
        socket.close()
    return done


def by_kr8s(port: int) -> Results:
    """httpx, and WebSockets over it."""
    import kr8s
    from kr8s.objects import ConfigMap, Pod

    api = kr8s.api()
    done: Results = {"list": [pod.name for pod in api.get("pods", namespace=NAMESPACE)]}
    made = ConfigMap({"metadata": {"name": "by-kr8s", "namespace": NAMESPACE}, "data": {"a": "b"}}, api=api)
    made.create()
    for kind, _ in api.watch("configmaps", namespace=NAMESPACE, field_selector="metadata.name=by-kr8s"):
        done["watch"] = kind
        break
    made.delete()
    pod = Pod.get(POD, namespace=NAMESPACE, api=api)
    done["logs"] = "\n".join(pod.logs()) + "\n"
    answer = pod.exec(COMMAND)
    done["exec"] = (answer.stdout + answer.stderr).decode()
    if port:
        import socket

        # Its "auto" takes a port at random, which a connection of another test may have.
        with pod.portforward(remote_port=port, local_port=free_port()) as local:
            with socket.create_connection(("127.0.0.1", local), 10) as connection:
                connection.sendall(b"ping")
                done["port-forward"] = connection.recv(4).decode()
    return done


def by_lightkube(port: int) -> Results:
    """httpx again; it has no port-forward."""
    from lightkube import Client
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.core_v1 import ConfigMap, Pod

    client = Client(namespace=NAMESPACE)
    done: Results = {"list": [pod.metadata.name for pod in client.list(Pod)]}
    client.create(ConfigMap(metadata=ObjectMeta(name="by-lightkube"), data={"a": "b"}))
    for kind, each in client.watch(ConfigMap, server_timeout=20):
        if each.metadata.name == "by-lightkube":
            done["watch"] = kind
            break
    client.delete(ConfigMap, "by-lightkube")
    done["logs"] = "".join(client.log(POD))
    if hasattr(client, "exec"):
        answer = client.exec(POD, namespace=NAMESPACE, command=COMMAND, stdout=True, stderr=True)
        done["exec"] = f"{answer.stdout}{answer.stderr}"
    return done


CLIENTS: dict[str, Callable[[int], Results]] = {
    "kubernetes": by_kubernetes,
    "kr8s": by_kr8s,
    "lightkube": by_lightkube,
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](int(sys.argv[2]))))
