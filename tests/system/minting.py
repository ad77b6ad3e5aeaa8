"""An exec plugin for kubectl that hands out tokens of a few seconds, signed by the hub's own key.

    python -m tests.system.minting KEY.pem KID CLAIMS SECONDS

CLAIMS is JSON. What a hub mints itself lives for a minute, which no test of the fast tier waits for.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.system.hostile import Forger

# Hawse's own plugin tells kubectl of an end that comes sooner as well: a token may be on its way for a while.
SKEW_S = 1

PEM, KID, CLAIMS, SECONDS = sys.argv[1:]
expires_at = int(time.time()) + int(SECONDS)
forger = Forger.from_pem(Path(PEM), "at+jwt", json.loads(CLAIMS), kid=KID)
status = {
    "token": forger.token(exp=expires_at + SKEW_S),
    "expirationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires_at)),
}
print(
    json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
)
