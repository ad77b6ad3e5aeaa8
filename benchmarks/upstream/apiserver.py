"""nginx in the API server's place: TLS 1.3, keep-alive, one worker.

    GET  anything          2 KB of JSON, as a pod is answered
    GET  /bulk/NAME        a file of the memory-backed folder
    GET  /paced/RATE/SIZE  SIZE bytes, RATE of them a second (benchmarks.upstream.paced)
    PUT  /sink/NAME        reads the whole body, then answers: nginx's WebDAV module writes it to a file in
                           memory, and the next one of that name replaces it
    PUT  WRITE_PATH NAME   the same, under the path of a ConfigMap

With `return 200` nginx would answer before the body has arrived, and would not measure it.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.nginx import issue_certificate, nginx_version, start_nginx
from benchmarks.processes import Daemons, free_port
from benchmarks.system import Endpoint
from benchmarks.upstream.paced import start_paced

POD_PATH = "/api/v1/namespaces/work/pods/workbench"
# A name follows.
WRITE_PATH = "/api/v1/namespaces/work/configmaps/"
_MEMORY = Path("/dev/shm")
_BLOCK_BYTES = 1 << 20

_SERVER = """\
    server {{
        listen 127.0.0.1:{port} ssl backlog=8192 reuseport;
        default_type application/json;
        location / {{ return 200 '{pod}'; }}
        location /bulk/ {{
            alias {memory}/;
            default_type application/octet-stream;
            # The worker serves other connections after each piece of this size.
            output_buffers 2 32k;
            sendfile_max_chunk 64k;
        }}
        location /paced/ {{
            proxy_pass http://127.0.0.1:{paced};
            # Each piece goes on as it comes.
            proxy_buffering off;
            proxy_buffer_size 64k;
            proxy_buffers 4 64k;
        }}
{sinks}
    }}
"""

# As many as there are paths that take bodies.
_SINK = """\
        location {path} {{
            alias {memory}/sink/;
            dav_methods PUT;
            client_max_body_size 0;
            client_body_buffer_size 64k;
        }}"""


@attrs.frozen
class ApiServer:
    """The running upstream (benchmarks.system.Upstream)."""

    endpoint: Endpoint
    processes: Mapping[str, int]
    memory: Path
    versions: Mapping[str, str]

    def body(self, size: int) -> str:
        """The path of a body of that many bytes, made when it is asked for first."""
        name = f"{size}.bin"
        file = self.memory / name
        if not file.exists():
            # Not zeros, so that nothing on the way can treat it as a special case.
            block = secrets.token_bytes(_BLOCK_BYTES)
            with file.open("wb") as output:
                for start in range(0, size, _BLOCK_BYTES):
                    output.write(block[: size - start])
        return f"/bulk/{name}"


def pod_json() -> str:
    """2 KB that look like a pod."""
    pod: dict[str, object] = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "workbench", "namespace": "work", "resourceVersion": "4711"},
        "spec": {"containers": [{"name": "main", "image": "busybox", "args": [""]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.7"},
    }
    text = json.dumps(pod, separators=(",", ":"))
    return text.replace('[""]', f'["{"x" * (2048 - len(text))}"]')


@contextmanager
def open_apiserver(folder: Path) -> Iterator[ApiServer]:
    """Start it in `folder`, with its bodies in a folder in memory that goes with it; raises Missing."""
    memory = Path(tempfile.mkdtemp(prefix="hawse-bench-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        (memory / "sink").mkdir()
        ca = issue_certificate(folder)
        port = free_port()
        with Daemons(folder) as daemons:
            sinks = "\n".join(_SINK.format(path=path, memory=memory) for path in ("/sink/", WRITE_PATH))
            http = _SERVER.format(
                port=port, pod=pod_json(), memory=memory, paced=start_paced(daemons), sinks=sinks
            )
            nginx = start_nginx(daemons, "upstream", folder, port, http, temporary=memory)
            yield ApiServer(
                endpoint=Endpoint("127.0.0.1", port, ca),
                processes={"upstream": nginx.process.pid},
                memory=memory,
                versions={"nginx": nginx_version("upstream")},
            )
    finally:
        shutil.rmtree(memory)
