"""An MCP server with one tool, which runs kubectl: for the tests that run without npm's packages."""

from __future__ import annotations

import json
import subprocess
import sys


def answer(method: str, params: dict[str, object]) -> dict[str, object]:
    """Return the result of a request."""
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}}
    if method == "tools/list":
        return {"tools": [{"name": "kubectl"}]}
    arguments = params["arguments"]
    assert isinstance(arguments, dict)
    done = subprocess.run(["kubectl", *arguments["argv"]], capture_output=True, text=True, timeout=60)
    return {"content": [{"type": "text", "text": done.stdout + done.stderr}], "isError": done.returncode != 0}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = answer(request["method"], request["params"])
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
