"""Checks the relay's configuration and files, without opening a port or contacting the hub.

The start runs the same check first, so that all errors are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from proxy.process.certificates import remarks_on, summary_of
from proxy.process.files import FileError, read_certificate
from proxy.process.findings import Findings
from proxy.process.plural import counted
from proxy.relay.config import ENVIRONMENT_PREFIX, FileConfig, RelayConfig, read
from proxy.relay.service_account import ClusterAccess, ClusterAccessError, from_kubeconfig, in_cluster
from tunnel.net.egress import ProxySettings

# Variables that command-line options also set; they alone are no configuration.
_OF_OPTIONS = (f"{ENVIRONMENT_PREFIX}MODE", f"{ENVIRONMENT_PREFIX}LOG_FORMAT")
NO_CONFIGURATION = (
    "it has no configuration: name its --config, which `hawse admin cluster add NAME --output-dir DIR` writes"
)


def check_relay(path: Path | None, environment: Mapping[str, str]) -> tuple[RelayConfig | None, Findings]:
    """Check everything `hawse relay` would start with; the configuration is None if it has errors."""
    findings = Findings()
    variables = sum(name.startswith(ENVIRONMENT_PREFIX) for name in environment)
    if path is None and variables == sum(name in environment for name in _OF_OPTIONS):
        findings.faults.append(NO_CONFIGURATION)
        return None, findings
    stated, config = read(path, environment, findings.configuration)
    findings.seen["configuration"] = f"{path or 'no file'}, {counted(variables, 'variable')}"
    if stated is not None:
        if not findings.has_fault_of("kubeconfig"):
            _look_at_access(stated, environment, findings)
        if stated.mode == "direct":
            if not findings.has_fault_of("direct"):
                _look_at_certificate(stated, findings)
        else:
            _look_at_egress(environment, findings)
    if config is not None:
        findings.seen["hub"] = f"{config.hub_url}, which was not asked"
        rails = config.guardrails
        findings.seen["guardrails"] = "none" if rails is None else rails.summary
    return config, findings


def _look_at_access(stated: FileConfig, environment: Mapping[str, str], findings: Findings) -> None:
    try:
        access: ClusterAccess = (
            in_cluster(environment) if stated.kubeconfig is None else from_kubeconfig(stated.kubeconfig)
        )
    except ClusterAccessError as error:
        findings.faults.extend(error.faults)
    else:
        findings.seen["API server"] = f"{access.authority.decode('ascii')}, which was not asked"


def _look_at_certificate(stated: FileConfig, findings: Findings) -> None:
    certificate, key = stated.direct.certificate, stated.direct.key
    assert certificate is not None, "or it is a fault of the configuration"
    assert key is not None, "or it is a fault of the configuration"
    look = partial(read_certificate, certificate, key, stated="direct.certificate")
    pem = findings.look(look, (FileError,))
    if pem is None:
        return
    # The certificate's names are not checked: only the hub knows the name that it dials.
    for remark in remarks_on(pem, datetime.now(UTC)):
        target = findings.refused if remark.refused else findings.warnings
        target.append(f"direct.certificate: {certificate}: {remark.text}")
    findings.seen["certificate"] = f"{certificate}: {summary_of(pem)}"
    findings.seen["listens on"] = f"{stated.direct.listen}, which was not opened"


def _look_at_egress(environment: Mapping[str, str], findings: Findings) -> None:
    try:
        ProxySettings.from_environment(environment)
    except ValueError as error:
        findings.faults.append(str(error))
