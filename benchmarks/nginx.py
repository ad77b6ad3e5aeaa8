"""nginx in a folder of its own: certificate, configuration, start; for the upstream and the yardstick."""

from __future__ import annotations

import os
from pathlib import Path

import trustme

from benchmarks.processes import Daemon, Daemons, program, version_of, wait_for_port

# One worker, as each of Hawse's processes has one loop; nothing on disk but the error log.
_CONFIGURATION = """\
daemon off;
{user}worker_processes 1;
worker_rlimit_nofile 65536;
error_log {folder}/error.log warn;
pid {folder}/nginx.pid;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    server_tokens off;
    client_body_temp_path {temporary}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    send_timeout 1h;
    tcp_nodelay on;
    ssl_protocols TLSv1.3;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    ssl_session_cache shared:tls:4m;
{http}
}}
"""


def nginx_program(system: str) -> str:
    """The path of nginx; raises Missing."""
    return program("nginx", system, "apt-get install nginx")


def nginx_version(system: str) -> str:
    """As in `1.26.3`."""
    return version_of(nginx_program(system), "-v").rpartition("/")[2]


def issue_certificate(folder: Path) -> Path:
    """Write server.pem and server.key for 127.0.0.1 into the folder; returns the CA's file."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    certificate = authority.issue_cert("127.0.0.1", "localhost", key_type=trustme.KeyType.ECDSA)
    certificate.private_key_pem.write_to_path(folder / "server.key")
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(folder / "server.pem", append=number > 0)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem"


def start_nginx(
    daemons: Daemons, name: str, folder: Path, port: int, http: str, *, temporary: Path | None = None
) -> Daemon:
    """Start nginx with `http` inside its http block, and wait until it listens on `port`; raises Missing.

    Started as root, its workers run as root too, because only root may read the folder.
    """
    nginx = nginx_program(name)
    user = "user root;\n" if os.getuid() == 0 else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(user=user, folder=folder, temporary=temporary or folder, http=http)
    )
    argv = [nginx, "-e", str(folder / "error.log"), "-c", str(configuration), "-p", str(folder)]
    daemon = daemons.start(name, argv)
    wait_for_port(port, daemon)
    return daemon
