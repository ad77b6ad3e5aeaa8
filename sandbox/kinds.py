"""The table of served resources: their names, scopes, verbs and subresources."""

from __future__ import annotations

import attrs

from sandbox.status import GroupResource

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CREATE_ONLY = ("create",)
READ_WRITE = ("get", "patch", "update")


@attrs.frozen
class Subresource:
    """A part of an object with its own URL; its kind may differ from the object's."""

    name: str
    verbs: tuple[str, ...]
    kind: str
    group: str = ""
    version: str = ""


@attrs.frozen
class Kind:
    """One resource. `generation` means that changes of its spec are counted."""

    group: str
    resource: str
    kind: str
    namespaced: bool = True
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    generation: bool = False
    field_labels: tuple[str, ...] = ()
    version: str = "v1"
    # An aggregated API server may store what a dry run asks for.
    honours_dry_run: bool = True
    # What becomes of the dependents of an object that is deleted without a propagation policy.
    propagation: str = "Background"

    @property
    def api_version(self) -> str:
        """Return `v1` or `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> GroupResource:
        """Return the name that errors use."""
        return GroupResource(self.group, self.resource)

    @property
    def prefix(self) -> str:
        """Return the path of the group version."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"

    @property
    def stored(self) -> bool:
        """True if it can be read back; reviews are only answered."""
        return "get" in self.verbs

    def subresource(self, name: str) -> Subresource | None:
        """Return one of the subresources."""
        return next((sub for sub in self.subresources if sub.name == name), None)

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the fields that a field selector may name."""
        where = ("metadata.name", "metadata.namespace") if self.namespaced else ("metadata.name",)
        return (*where, *self.field_labels)


def _status(kind: str) -> Subresource:
    return Subresource("status", READ_WRITE, kind)


_SCALE = Subresource("scale", READ_WRITE, "Scale", "autoscaling", "v1")
APPS = "apps"
RBAC = "rbac.authorization.k8s.io"
AUTHENTICATION = "authentication.k8s.io"
AUTHORIZATION = "authorization.k8s.io"
POLICY = "policy"
BATCH = "batch"
REGISTRATION = "apiregistration.k8s.io"
ADMISSION = "admissionregistration.k8s.io"

PODS = Kind(
    "",
    "pods",
    "Pod",
    singular="pod",
    short_names=("po",),
    categories=("all",),
    generation=True,
    field_labels=(
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
    ),
    subresources=(
        Subresource("attach", ("create", "get"), "PodAttachOptions"),
        Subresource("ephemeralcontainers", READ_WRITE, "Pod"),
        Subresource("eviction", CREATE_ONLY, "Eviction", POLICY, "v1"),
        Subresource("exec", ("create", "get"), "PodExecOptions"),
        Subresource("log", ("get",), "Pod"),
        Subresource("portforward", ("create", "get"), "PodPortForwardOptions"),
        _status("Pod"),
    ),
)
NAMESPACES = Kind(
    "",
    "namespaces",
    "Namespace",
    namespaced=False,
    singular="namespace",
    short_names=("ns",),
    field_labels=("status.phase",),
    # A collection of namespaces cannot be deleted at once.
    verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
    subresources=(Subresource("finalize", ("update",), "Namespace"), _status("Namespace")),
)
SERVICE_ACCOUNTS = Kind(
    "",
    "serviceaccounts",
    "ServiceAccount",
    singular="serviceaccount",
    short_names=("sa",),
    subresources=(Subresource("token", CREATE_ONLY, "TokenRequest", AUTHENTICATION, "v1"),),
)
SERVICES = Kind(
    "",
    "services",
    "Service",
    singular="service",
    short_names=("svc",),
    categories=("all",),
    field_labels=("spec.clusterIP", "spec.type"),
    subresources=(_status("Service"),),
)
EVENTS = Kind(
    "",
    "events",
    "Event",
    singular="event",
    short_names=("ev",),
    field_labels=(
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
)
CONFIG_MAPS = Kind("", "configmaps", "ConfigMap", singular="configmap", short_names=("cm",))
SECRETS = Kind("", "secrets", "Secret", singular="secret", field_labels=("type",))
NODES = Kind(
    "",
    "nodes",
    "Node",
    namespaced=False,
    singular="node",
    short_names=("no",),
    field_labels=("spec.unschedulable",),
    subresources=(_status("Node"),),
)
DEPLOYMENTS = Kind(
    APPS,
    "deployments",
    "Deployment",
    singular="deployment",
    short_names=("deploy",),
    categories=("all",),
    generation=True,
    subresources=(_SCALE, _status("Deployment")),
)
REPLICA_SETS = Kind(
    APPS,
    "replicasets",
    "ReplicaSet",
    singular="replicaset",
    short_names=("rs",),
    categories=("all",),
    generation=True,
    field_labels=("status.replicas",),
    subresources=(_SCALE, _status("ReplicaSet")),
)
JOBS = Kind(
    BATCH,
    "jobs",
    "Job",
    singular="job",
    categories=("all",),
    generation=True,
    field_labels=("status.successful",),
    propagation="Orphan",
    subresources=(_status("Job"),),
)
DISRUPTION_BUDGETS = Kind(
    POLICY,
    "poddisruptionbudgets",
    "PodDisruptionBudget",
    singular="poddisruptionbudget",
    short_names=("pdb",),
    generation=True,
    subresources=(_status("PodDisruptionBudget"),),
)
CLUSTER_ROLES = Kind(RBAC, "clusterroles", "ClusterRole", namespaced=False, singular="clusterrole")
CLUSTER_ROLE_BINDINGS = Kind(
    RBAC, "clusterrolebindings", "ClusterRoleBinding", namespaced=False, singular="clusterrolebinding"
)
ROLES = Kind(RBAC, "roles", "Role", singular="role")
MUTATING_WEBHOOKS = Kind(
    ADMISSION,
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    namespaced=False,
    singular="mutatingwebhookconfiguration",
    categories=("api-extensions",),
    generation=True,
)
VALIDATING_WEBHOOKS = Kind(
    ADMISSION,
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
    namespaced=False,
    singular="validatingwebhookconfiguration",
    categories=("api-extensions",),
    generation=True,
)
ROLE_BINDINGS = Kind(RBAC, "rolebindings", "RoleBinding", singular="rolebinding")
API_SERVICES = Kind(
    REGISTRATION,
    "apiservices",
    "APIService",
    namespaced=False,
    singular="apiservice",
    categories=("api-extensions",),
    subresources=(_status("APIService"),),
)
# Two groups that an aggregated API server would serve. The first one ignores `dryRun` and stores the object.
THINGS = Kind("aggregated.example.com", "things", "Thing", singular="thing", honours_dry_run=False)
WIDGETS = Kind("stable.example.com", "widgets", "Widget", singular="widget", generation=True)


def _review(group: str, kind: str, *, namespaced: bool = False) -> Kind:
    name = kind.lower()
    return Kind(group, f"{name}s", kind, namespaced=namespaced, singular=name, verbs=CREATE_ONLY)


KINDS: tuple[Kind, ...] = (
    CONFIG_MAPS,
    EVENTS,
    NAMESPACES,
    NODES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    DEPLOYMENTS,
    REPLICA_SETS,
    JOBS,
    _review(AUTHENTICATION, "SelfSubjectReview"),
    _review(AUTHORIZATION, "LocalSubjectAccessReview", namespaced=True),
    _review(AUTHORIZATION, "SelfSubjectAccessReview"),
    _review(AUTHORIZATION, "SelfSubjectRulesReview"),
    _review(AUTHORIZATION, "SubjectAccessReview"),
    DISRUPTION_BUDGETS,
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    ROLE_BINDINGS,
    ROLES,
    MUTATING_WEBHOOKS,
    VALIDATING_WEBHOOKS,
    API_SERVICES,
    THINGS,
    WIDGETS,
)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(kind.group for kind in KINDS))
AGGREGATED: tuple[str, ...] = (THINGS.group, WIDGETS.group)
_BY_NAME = {(kind.group, kind.version, kind.resource): kind for kind in KINDS}


def find(group: str, version: str, resource: str) -> Kind | None:
    """Return the kind that a path names."""
    return _BY_NAME.get((group, version, resource))


def of_group(group: str) -> tuple[Kind, ...]:
    """Return the kinds of an API group."""
    return tuple(kind for kind in KINDS if kind.group == group)
