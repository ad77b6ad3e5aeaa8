"""The options of a write: the query of a create, an update or a patch, and the DeleteOptions of a delete."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from sandbox import codec, patch
from sandbox.kinds import Kind
from sandbox.objects import Object, lookup, mapping, strings, text
from sandbox.requestinfo import RequestInfo
from sandbox.server import Request
from sandbox.status import Fault, bad_request, invalid, invalid_field

PROPAGATIONS = ("Orphan", "Background", "Foreground")
_OPTIONS = {"create": "CreateOptions", "update": "UpdateOptions", "patch": "PatchOptions"}


@attrs.frozen
class WriteOptions:
    """The options of a write, from its query."""

    dry_run: bool = False
    manager: str = "unknown"
    operation: str = "Update"
    subresource: str = ""
    # True for a request, which admission webhooks see; False for a write of one of the sandbox's controllers.
    requested: bool = False

    @classmethod
    def of_request(cls, request: Request, info: RequestInfo, kind: Kind) -> WriteOptions:
        """Read the query; raises StatusError."""
        if info.verb not in _OPTIONS:
            return cls(subresource=info.subresource, requested=True)
        applying = info.verb == "patch" and request.header(b"content-type").startswith(patch.APPLY_PATCH)
        return cls(
            dry_run=is_dry_run(kind, request.query.get("dryRun", ()), _OPTIONS[info.verb]),
            manager=request.option("fieldManager")
            or request.header(b"user-agent").partition("/")[0]
            or "unknown",
            operation="Apply" if applying else "Update",
            subresource=info.subresource,
            requested=True,
        )


@attrs.frozen
class Deletion:
    """The DeleteOptions of a request, parsed and checked."""

    grace_s: int | None = None
    propagation: str = ""
    uid: str = ""
    revision: str = ""
    dry_run: bool = False
    # As in WriteOptions.
    requested: bool = False

    @classmethod
    def of_request(cls, request: Request, body: bytes, kind: Kind) -> Deletion:
        """Read a delete's options; raises StatusError.

        They come from the body alone if there is one: then the server ignores the query, `dryRun` too.
        """
        return cls.of_options(codec.decode_body(request, body) if body else _from_query(request), kind)

    @classmethod
    def of_options(cls, options: Object, kind: Kind) -> Deletion:
        """Read DeleteOptions; raises StatusError."""
        propagation = text(options, "propagationPolicy")
        if propagation and propagation not in PROPAGATIONS:
            supported = ", ".join(f'"{each}"' for each in ("Background", "Foreground", "Orphan"))
            fault = invalid_field("propagationPolicy", propagation, f"supported values: {supported}")
            raise invalid("meta.k8s.io", "DeleteOptions", "", [fault])
        if options.get("orphanDependents") is True:
            propagation = "Orphan"
        grace = lookup(options, "gracePeriodSeconds")
        return cls(
            grace_s=grace if isinstance(grace, int) else None,
            propagation=propagation,
            uid=text(options, "preconditions", "uid"),
            revision=text(options, "preconditions", "resourceVersion"),
            dry_run=is_dry_run(kind, strings(options, "dryRun"), "DeleteOptions"),
            requested=True,
        )


DEFAULT_OPTIONS = WriteOptions()
DEFAULT_DELETION = Deletion()


def eviction_of(eviction: Object, options: WriteOptions, kind: Kind) -> Deletion:
    """Return the deletion that an Eviction asks for; its dry run is in its query or in its body.

    Webhooks see the eviction, and not the deletion that follows.
    """
    deletion = Deletion.of_options(mapping(eviction, "deleteOptions"), kind)
    return attrs.evolve(deletion, dry_run=deletion.dry_run or options.dry_run, requested=False)


def is_dry_run(kind: Kind, values: Sequence[str], what: str) -> bool:
    """True if a write must store nothing; raises StatusError for any value but `All`."""
    if not set(values) <= {"All"}:
        shown = ", ".join(f'"{value}"' for value in values)
        fault = Fault(
            "FieldValueNotSupported",
            "dryRun",
            f'Unsupported value: []string{{{shown}}}: supported values: "All"',
        )
        raise invalid("meta.k8s.io", what, "", [fault])
    return bool(values) and kind.honours_dry_run


def _from_query(request: Request) -> Object:
    options: Object = {}
    if grace := request.option("gracePeriodSeconds"):
        if not grace.isdecimal():
            raise bad_request(f'strconv.ParseInt: parsing "{grace}": invalid syntax')
        options["gracePeriodSeconds"] = int(grace)
    if policy := request.option("propagationPolicy"):
        options["propagationPolicy"] = policy
    if request.option("orphanDependents"):
        options["orphanDependents"] = request.flag("orphanDependents")
    options["dryRun"] = [*request.query.get("dryRun", ())]
    return options
