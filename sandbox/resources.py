"""Dispatches authorised requests for resources, by verb and resource."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from sandbox import codec, kinds, listing, patch, table
from sandbox.admission import Attributes
from sandbox.authn import User
from sandbox.disruption import Budgets
from sandbox.kinds import Kind
from sandbox.objects import Json, Object, child, encode, integer, mapping, text
from sandbox.options import Deletion, WriteOptions, eviction_of
from sandbox.podstreams import PodStreams
from sandbox.requestinfo import RequestInfo
from sandbox.reviews import Reviews
from sandbox.selectors import from_object
from sandbox.server import Answer, Exchange, Request, Response
from sandbox.status import (
    bad_request,
    invalid,
    invalid_field,
    method_not_allowed,
    missing_field,
    no_such_path,
    unsupported_media_type,
)
from sandbox.storage import Item, Store
from sandbox.writing import Writer

# For these kinds, a deletion returns the deleted object instead of a Status.
_RETURNED = ("Pod", "Service", "ServiceAccount", "Namespace")


@attrs.frozen
class Call:
    """One request for a resource."""

    exchange: Exchange
    info: RequestInfo
    user: User
    kind: Kind
    write_options: WriteOptions
    warnings: list[str] = attrs.field(factory=list)

    @property
    def request(self) -> Request:
        """Return the request's head."""
        return self.exchange.request

    @property
    def namespace(self) -> str:
        """Return the namespace of the object."""
        return self.info.namespace if self.kind.namespaced else ""

    async def body(self) -> Object:
        """Return the object in the body."""
        body = await self.exchange.read_body()
        return codec.decode_object(self.request, body, self.kind.kind, self.kind.api_version, self.warnings)


class Resources:
    """Answers requests for resources."""

    def __init__(self, store: Store, writer: Writer, reviews: Reviews, streams: PodStreams) -> None:
        self._store = store
        self._writer = writer
        self._reviews = reviews
        self._streams = streams
        self._budgets = Budgets(store)
        self._verbs: dict[str, Callable[[Call], Awaitable[Answer]]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }

    async def answer(self, exchange: Exchange, info: RequestInfo, user: User) -> Answer:
        """Answer one request; raises StatusError."""
        kind = kinds.find(info.group, info.version, info.resource)
        if kind is None or info.rest:
            raise no_such_path()
        call = Call(exchange, info, user, kind, WriteOptions.of_request(exchange.request, info, kind))
        if info.subresource:
            return await self._subresource(call)
        verb = self._verbs.get(info.verb)
        everywhere = info.verb in ("list", "watch") or not kind.stored
        if (
            info.verb not in kind.verbs
            or verb is None
            or (kind.namespaced and not info.namespace and not everywhere)
        ):
            raise method_not_allowed()
        if not kind.stored:
            review = codec.typed(kind, await call.body())
            return Response(201, encode(self._reviews.answer(review, call.user, info.namespace)))
        return await verb(call)

    async def _get(self, call: Call) -> Answer:
        return _one(call, self._writer.found(call.kind, call.namespace, call.info.name))

    async def _list(self, call: Call) -> Answer:
        return listing.answer_list(call.request, self._store, call.kind, call.info.namespace)

    async def _watch(self, call: Call) -> Answer:
        return listing.answer_watch(call.request, self._store, call.kind, call.namespace, call.info.name)

    async def _create(self, call: Call) -> Answer:
        if call.info.name:
            raise method_not_allowed()
        value = await call.body()
        return _one(call, self._writer.create(call.kind, call.namespace, value, call.write_options), 201)

    async def _update(self, call: Call) -> Answer:
        value = await call.body()
        return _one(call, self._updated(call, lambda present: value))

    async def _patch(self, call: Call) -> Answer:
        content_type = call.request.header(b"content-type").partition(";")[0].strip()
        if content_type not in patch.PATCH_TYPES:
            raise unsupported_media_type(patch.PATCH_TYPES)
        applying = content_type == patch.APPLY_PATCH
        body = codec.parse(await call.exchange.read_body(), as_yaml=applying)
        if not applying:
            return _one(
                call, self._updated(call, lambda present: _patched(call, present, body, content_type))
            )
        configuration = _configuration(call, body)
        present = self._store.collection(call.kind.group, call.kind.resource).get(
            call.namespace, call.info.name
        )
        if present is None and not call.info.subresource:
            return _one(
                call, self._writer.create(call.kind, call.namespace, configuration, call.write_options), 201
            )
        kind = call.kind.kind
        return _one(
            call, self._updated(call, lambda value: patch.apply_configuration(kind, value, configuration))
        )

    def _updated(self, call: Call, change: Callable[[Object], Object]) -> Item:
        return self._writer.update(call.kind, call.namespace, call.info.name, change, call.write_options)

    async def _delete(self, call: Call) -> Answer:
        deletion = Deletion.of_request(call.request, await call.exchange.read_body(), call.kind)
        item, gone = self._writer.delete(call.kind, call.namespace, call.info.name, deletion)
        if not gone or call.kind.kind in _RETURNED:
            return _one(call, item)
        return Response(200, encode(_success(call.kind, item)))

    async def _delete_collection(self, call: Call) -> Answer:
        deletion = Deletion.of_request(call.request, await call.exchange.read_body(), call.kind)
        options = listing.Options.of_request(call.request, call.kind)
        found = self._store.collection(call.kind.group, call.kind.resource).items(call.namespace)
        chosen = [item for item in found if options.matches(item.value)]
        for item in chosen:
            self._writer.delete(call.kind, call.namespace, text(item.value, "metadata", "name"), deletion)
        metadata = encode({"resourceVersion": str(self._store.revision)})
        return Response(200, codec.list_body(call.kind, metadata, chosen))

    async def _subresource(self, call: Call) -> Answer:
        sub = call.kind.subresource(call.info.subresource)
        if sub is None or not call.info.name:
            raise no_such_path()
        if call.info.verb not in sub.verbs:
            raise method_not_allowed()
        match sub.name:
            case "exec" | "attach" | "portforward":
                return self._streams.upgrade(call.request, self._pod(call), sub.name)
            case "log":
                return self._streams.log(call.request, self._pod(call))
            case "scale":
                return await self._scale(call)
            case "token":
                return await self._token(call)
            case "eviction":
                return await self._evict(call)
        if call.info.verb == "get":
            return await self._get(call)
        # status, ephemeralcontainers and finalize: the client sends the whole object, and one part of it is
        # used.
        return await (self._patch(call) if call.info.verb == "patch" else self._update(call))

    def _pod(self, call: Call) -> Item:
        return self._writer.found(kinds.PODS, call.namespace, call.info.name)

    async def _scale(self, call: Call) -> Answer:
        """Answer the scale of a workload, or set its replicas."""
        item = self._writer.found(call.kind, call.namespace, call.info.name)
        if call.info.verb == "get":
            return Response(200, encode(_scale_of(item.value)))
        body = await call.exchange.read_body()
        if call.info.verb == "update":
            scale = codec.decode_object(call.request, body, "Scale", "autoscaling/v1", call.warnings)
        else:
            patched = patch.merge_patch(_scale_of(item.value), codec.parse(body))
            scale = patched if isinstance(patched, dict) else {}
        replicas = integer(scale, "spec", "replicas")
        if replicas < 0:
            fault = invalid_field("spec.replicas", replicas, "must be greater than or equal to 0")
            raise invalid("autoscaling", "Scale", call.info.name, [fault])

        def change(value: Object) -> Object:
            child(value, "spec")["replicas"] = replicas
            child(value, "metadata")["resourceVersion"] = text(scale, "metadata", "resourceVersion")
            return value

        updated = self._updated(call, change)
        return Response(200, encode(_scale_of(updated.value)))

    async def _token(self, call: Call) -> Answer:
        body = await call.exchange.read_body()
        decoded = codec.decode_object(call.request, body, "TokenRequest", "authentication.k8s.io/v1", [])
        account = self._writer.found(kinds.SERVICE_ACCOUNTS, call.namespace, call.info.name)
        return Response(201, encode(self._reviews.issue_token(decoded, account.value)))

    async def _evict(self, call: Call) -> Answer:
        body = await call.exchange.read_body()
        decoded = codec.decode_object(call.request, body, "Eviction", "policy/v1", call.warnings)
        if text(decoded, "metadata", "name") != call.info.name:
            raise bad_request("name in URL does not match name in Eviction object")
        deletion = eviction_of(decoded, call.write_options, call.kind)
        admission = self._writer.admission
        attributes = Attributes(
            call.kind,
            "CREATE",
            call.namespace,
            call.info.name,
            decoded,
            subresource="eviction",
            dry_run=deletion.dry_run,
        )
        admission.mutate(attributes)
        admission.validate(attributes)
        pod = self._pod(call)
        # Its preconditions are checked first, so that a refused eviction counts in no budget.
        self._writer.delete(call.kind, call.namespace, call.info.name, attrs.evolve(deletion, dry_run=True))
        self._budgets.evict(pod, dry_run=deletion.dry_run)
        self._writer.delete(call.kind, call.namespace, call.info.name, deletion)
        success: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "code": 201,
        }
        return Response(201, encode(success))


def _one(call: Call, item: Item, code: int = 200) -> Response:
    """Answer with one object in the requested format."""
    answer_form = codec.answer_form(call.request)
    headers = codec.warning_headers(call.warnings)
    if answer_form.table:
        include = call.request.option("includeObject") or "Metadata"
        metadata: Object = {"resourceVersion": str(item.revision)}
        rendered = table.render(call.kind, [item], metadata, version=answer_form.version, include=include)
        return Response(code, encode(rendered), headers=headers)
    if answer_form.form:
        return Response(code, encode(table.partial(item.value, answer_form.version)), headers=headers)
    return Response(code, codec.with_type(call.kind, item), headers=headers)


def _patched(call: Call, present: Object, body: Json, content_type: str) -> Object:
    """Return an object with a patch applied, checked against the table of fields."""
    value = codec.typed(call.kind, present)
    result: Json
    if content_type == patch.JSON_PATCH:
        result = patch.json_patch(value, body)
    elif not isinstance(body, dict):
        raise bad_request("a merge patch is an object")
    elif content_type == patch.MERGE_PATCH:
        result = patch.merge_patch(value, body)
    else:
        result = patch.strategic_merge(call.kind.kind, value, body)
    if not isinstance(result, dict):
        raise bad_request("the patch leaves something that is no object")
    if (result.get("kind"), result.get("apiVersion")) != (call.kind.kind, call.kind.api_version):
        raise bad_request("a patch cannot change the object's kind or API version")
    return codec.known_fields(call.request, call.kind.kind, result, call.warnings)


def _configuration(call: Call, body: Json) -> Object:
    """Check the body of a server-side apply."""
    if not isinstance(body, dict):
        raise bad_request("the configuration to apply is no object")
    if (body.get("kind"), body.get("apiVersion")) != (call.kind.kind, call.kind.api_version):
        raise bad_request("the configuration to apply is of another kind or API version than its address")
    if not call.request.option("fieldManager"):
        fault = missing_field("fieldManager")
        fault = attrs.evolve(fault, message="Required value: is required for apply patch")
        raise invalid("meta.k8s.io", "PatchOptions", "", [fault])
    value = codec.known_fields(call.request, call.kind.kind, body, call.warnings)
    metadata = child(value, "metadata")
    if metadata.pop("managedFields", None):
        raise bad_request("metadata.managedFields must be nil")
    if metadata.setdefault("name", call.info.name) != call.info.name:
        raise bad_request("the name of the object does not match the name on the URL")
    del value["kind"], value["apiVersion"]
    return value


def _success(kind: Kind, item: Item) -> Object:
    details = {
        "name": text(item.value, "metadata", "name"),
        "group": kind.group,
        "kind": kind.resource,
        "uid": text(item.value, "metadata", "uid"),
    }
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }


def _scale_of(value: Object) -> Object:
    metadata = mapping(value, "metadata")
    selector = [
        f"{term.key}={term.values[0]}" if term.operator == "in" and len(term.values) == 1 else term.key
        for term in from_object(mapping(value, "spec", "selector"))
    ]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            key: metadata[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
            if key in metadata
        },
        "spec": {"replicas": integer(value, "spec", "replicas")},
        "status": {"replicas": integer(value, "status", "replicas"), "selector": ",".join(selector)},
    }
