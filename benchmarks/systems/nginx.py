"""nginx as a TLS reverse proxy, keep-alive and TLS on both sides: the limit without a tunnel.

Its settings are the cheapest of those tried: buffers that hold a whole answer, no temporary files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.nginx import issue_certificate, nginx_version, start_nginx
from benchmarks.processes import Daemons, free_port
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.upstream.apiserver import POD_PATH

_SERVER = """\
    upstream apiserver {{
        server {host}:{upstream_port};
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port} ssl backlog=8192 reuseport;
        client_max_body_size 0;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {ca};
        proxy_ssl_name localhost;  # nginx checks no certificate for an address
        proxy_request_buffering off;
        proxy_max_temp_file_size 0;
        proxy_buffer_size 16k;
        proxy_buffers 16 16k;
        proxy_busy_buffers_size 64k;
        proxy_read_timeout 1h;
        location / {{ proxy_pass https://apiserver; }}
        location {exec_path} {{
            proxy_pass https://apiserver;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
    }}
"""


@contextmanager
def open_nginx(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Run it; raises Missing without nginx."""
    port = free_port()
    http = _SERVER.format(
        host=upstream.endpoint.host,
        upstream_port=upstream.endpoint.port,
        port=port,
        ca=upstream.endpoint.ca,
        exec_path=f"{POD_PATH}/exec",
    )
    ca = issue_certificate(folder)
    with Daemons(folder) as daemons:
        nginx = start_nginx(daemons, "nginx", folder, port, http)
        yield System(
            name="nginx",
            endpoint=Endpoint("127.0.0.1", port, ca),
            processes={"nginx": nginx.process.pid},
            versions={"nginx": nginx_version("nginx")},
        )
