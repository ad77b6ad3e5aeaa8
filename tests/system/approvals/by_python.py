"""Deletes a config map by the official client: `python -m tests.system.approvals.by_python NAMESPACE NAME`.

The kubeconfig comes by KUBECONFIG, its current context counts. Prints the Status of a refusal, and exits 1.
"""

from __future__ import annotations

import sys

from kubernetes import client, config


def main(namespace: str, name: str) -> None:
    """Delete it."""
    config.load_kube_config()
    try:
        client.CoreV1Api().delete_namespaced_config_map(namespace=namespace, name=name)
    except client.ApiException as refusal:
        sys.exit(str(refusal.body))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
