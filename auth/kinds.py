"""Kubernetes' own resources by scope: namespaced or cluster-scoped.

A request does not reveal the scope: a list without a namespace covers either all namespaces or a
cluster-scoped resource. The tables hold the API groups of Kubernetes 1.37, and metrics.k8s.io, which nearly
every cluster has. Resources in neither table belong to a CustomResourceDefinition or an aggregated API; their
scope is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping


def _pairs(table: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((group, resource) for group, names in table.items() for resource in names.split())


# (group, resource) of each kind.
NAMESPACED = _pairs(
    {
        "": "bindings configmaps endpoints events limitranges persistentvolumeclaims pods podtemplates "
        "replicationcontrollers resourcequotas secrets serviceaccounts services",
        "apps": "controllerrevisions daemonsets deployments replicasets statefulsets",
        "authorization.k8s.io": "localsubjectaccessreviews",
        "autoscaling": "horizontalpodautoscalers",
        "batch": "cronjobs jobs",
        "certificates.k8s.io": "podcertificaterequests",
        "coordination.k8s.io": "leasecandidates leases",
        "discovery.k8s.io": "endpointslices",
        "events.k8s.io": "events",
        "lifecycle.k8s.io": "evictionrequests evictions",
        "metrics.k8s.io": "pods",
        "networking.k8s.io": "ingresses networkpolicies",
        "policy": "poddisruptionbudgets",
        "rbac.authorization.k8s.io": "rolebindings roles",
        "resource.k8s.io": "resourceclaims resourceclaimtemplates",
        "scheduling.k8s.io": "compositepodgroups podgroups workloads",
        "storage.k8s.io": "csistoragecapacities",
    }
)
CLUSTER_SCOPED = _pairs(
    {
        "": "namespaces nodes persistentvolumes componentstatuses",
        "admissionregistration.k8s.io": "mutatingadmissionpolicies mutatingadmissionpolicybindings "
        "mutatingwebhookconfigurations validatingadmissionpolicies validatingadmissionpolicybindings "
        "validatingwebhookconfigurations",
        "apiextensions.k8s.io": "customresourcedefinitions",
        "apiregistration.k8s.io": "apiservices",
        "authentication.k8s.io": "selfsubjectreviews tokenreviews",
        "authorization.k8s.io": "selfsubjectaccessreviews selfsubjectrulesreviews subjectaccessreviews",
        "certificates.k8s.io": "certificatesigningrequests clustertrustbundles",
        "flowcontrol.apiserver.k8s.io": "flowschemas prioritylevelconfigurations",
        "internal.apiserver.k8s.io": "storageversions",
        "metrics.k8s.io": "nodes",
        "networking.k8s.io": "ingressclasses ipaddresses servicecidrs",
        "node.k8s.io": "runtimeclasses",
        "rbac.authorization.k8s.io": "clusterrolebindings clusterroles",
        "resource.k8s.io": "deviceclasses devicetaintrules resourcepoolstatusrequests resourceslices",
        "scheduling.k8s.io": "priorityclasses",
        "storage.k8s.io": "csidrivers csinodes storageclasses volumeattachments volumeattributesclasses",
        "storagemigration.k8s.io": "storageversionmigrations",
    }
)
