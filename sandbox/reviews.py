"""Reviews of identities and permissions, and tokens for service accounts."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sandbox.authn import Authenticator, User, service_account_user
from sandbox.objects import Json, Object, integer, lookup, mapping, strings, text
from sandbox.rbac import Attributes, Authorizer
from sandbox.status import Fault, bad_request, invalid

TOKEN_S = 3600
# The real server's limits: at least ten minutes, at most 2^32 seconds.
TOKEN_MIN_S, TOKEN_MAX_S = 600, 1 << 32
AUDIENCE = "https://kubernetes.default.svc.cluster.local"


class Reviews:
    """Answers reviews."""

    def __init__(self, authorizer: Authorizer, authenticator: Authenticator) -> None:
        self._authorizer = authorizer
        self._authenticator = authenticator

    def answer(self, review: Object, user: User, namespace: str) -> Object:
        """Return a review with its status; raises StatusError."""
        metadata: Object = {"creationTimestamp": None}
        answered: Object = {**review, "metadata": metadata}
        spec = mapping(review, "spec")
        match text(review, "kind"):
            case "SelfSubjectReview":
                metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                answered["status"] = {"userInfo": user.to_json()}
            case "SelfSubjectAccessReview":
                answered["status"] = self._access(spec, user)
            case "SelfSubjectRulesReview":
                if not text(spec, "namespace"):
                    raise bad_request("no namespace on request")
                answered["status"] = self._rules(text(spec, "namespace"), user)
            case "SubjectAccessReview":
                answered["status"] = self._access(spec, _subject(spec))
            case "LocalSubjectAccessReview":
                if text(spec, "resourceAttributes", "namespace") != namespace:
                    raise bad_request(f"spec.resourceAttributes.namespace must match namespace: {namespace}")
                answered["status"] = self._access(spec, _subject(spec))
        return answered

    def _access(self, spec: Object, user: User) -> Object:
        resource = mapping(spec, "resourceAttributes")
        if resource:
            attributes = Attributes(
                user=user,
                verb=text(resource, "verb"),
                group=text(resource, "group"),
                resource=text(resource, "resource"),
                subresource=text(resource, "subresource"),
                namespace=text(resource, "namespace"),
                name=text(resource, "name"),
            )
        else:
            path = mapping(spec, "nonResourceAttributes")
            attributes = Attributes(user=user, verb=text(path, "verb"), path=text(path, "path"))
        return {"allowed": self._authorizer.refusal(attributes) is None}

    def _rules(self, namespace: str, user: User) -> Object:
        """Return all rules that apply to a user, those for resources separate from those for paths."""
        resources: list[Json] = []
        paths: list[Json] = []
        errors: list[str] = []
        for rule in self._authorizer.rules(user, namespace, errors):
            if strings(rule, "resources"):
                keys = ("verbs", "apiGroups", "resources", "resourceNames")
                resources.append({key: rule[key] for key in keys if key in rule})
            if strings(rule, "nonResourceURLs"):
                paths.append({key: rule[key] for key in ("verbs", "nonResourceURLs")})
        status: Object = {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}
        if errors:
            status["evaluationError"] = ", ".join(errors)
        return status

    def issue_token(self, attributes: Object, account: Object) -> Object:
        """Return a TokenRequest that contains the token; raises StatusError."""
        seconds = lookup(attributes, "spec", "expirationSeconds")
        lifetime_s = integer(attributes, "spec", "expirationSeconds", default=TOKEN_S)
        if seconds is not None and not TOKEN_MIN_S <= lifetime_s <= TOKEN_MAX_S:
            limit = (
                "may not specify a duration less than 10 minutes"
                if lifetime_s < TOKEN_MIN_S
                else "may not specify a duration larger than 2^32 seconds"
            )
            fault = Fault(
                "FieldValueInvalid", "spec.expirationSeconds", f"Invalid value: {lifetime_s}: {limit}"
            )
            raise invalid("authentication.k8s.io", "TokenRequest", "", [fault])
        namespace, name = text(account, "metadata", "namespace"), text(account, "metadata", "name")
        user = service_account_user(namespace, name, text(account, "metadata", "uid"))
        token = self._authenticator.issue(user, lifetime_s=lifetime_s)
        expires = datetime.fromtimestamp(time.time() + lifetime_s, UTC)
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": None},
            "spec": {
                "audiences": [*strings(attributes, "spec", "audiences")] or [AUDIENCE],
                "expirationSeconds": lifetime_s,
                "boundObjectRef": lookup(attributes, "spec", "boundObjectRef"),
            },
            "status": {"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ")},
        }


def _subject(spec: Object) -> User:
    extra = {key: tuple(strings(spec, "extra", key)) for key in mapping(spec, "extra")}
    return User(text(spec, "user"), text(spec, "uid"), tuple(strings(spec, "groups")), extra)
