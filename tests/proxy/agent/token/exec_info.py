"""What a Kubernetes client hands an exec plugin in KUBERNETES_EXEC_INFO."""

from __future__ import annotations

import json

V1 = "client.authentication.k8s.io/v1"
# As kubernetes_asyncio writes it, regardless of the kubeconfig.
NO_CLUSTER = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "spec": {"interactive": True}})


def exec_info(hub: str, cluster: str = "prod", api_version: str = V1, **more: object) -> str:
    # As kubectl writes it with provideClusterInfo.
    return json.dumps(
        {
            "kind": "ExecCredential",
            "apiVersion": api_version,
            "spec": {
                "cluster": {
                    "server": f"{hub}/clusters/{cluster}",
                    "certificate-authority-data": "AA==",
                    "config": None,
                    **more,
                },
                "interactive": True,
            },
        }
    )
