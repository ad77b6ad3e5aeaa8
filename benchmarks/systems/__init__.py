"""The systems that are measured, one a module, by the name that the results know them by."""

from __future__ import annotations

from benchmarks.system import OpenSystem
from benchmarks.systems.chisel import open_chisel
from benchmarks.systems.direct import open_direct
from benchmarks.systems.frp import open_frp
from benchmarks.systems.hawse import open_hawse, open_seeded, open_without_wheels
from benchmarks.systems.hop import NAME as HOP
from benchmarks.systems.hop import open_hop
from benchmarks.systems.konnectivity import open_konnectivity
from benchmarks.systems.leg import OpenTunnel
from benchmarks.systems.mplex import open_mplex
from benchmarks.systems.nginx import open_nginx
from benchmarks.systems.plain import open_plain
from benchmarks.systems.postgres import NAME as ON_POSTGRES
from benchmarks.systems.postgres import open_on_postgres
from benchmarks.systems.remotedialer import open_remotedialer, open_remotedialer_http
from benchmarks.systems.snitun import open_snitun
from benchmarks.systems.ssh import open_ssh
from benchmarks.systems.yamux import open_yamux

# What runs always, then what runs with --peers, in the order of the tables.
ALWAYS: dict[str, OpenSystem] = {
    "direct": open_direct,
    "nginx": open_nginx,
    "hawse": open_hawse,
    "plain": open_plain,
}
PEERS: dict[str, OpenTunnel] = {
    "ssh": open_ssh,
    "chisel": open_chisel,
    "frp": open_frp,
    "yamux": open_yamux,
    "konnectivity": open_konnectivity,
    "rdialer": open_remotedialer,
    "rdialer-http": open_remotedialer_http,
    "snitun": open_snitun,
    "mplex": open_mplex,
}
# What runs when it is named.
EXTRA: dict[str, OpenSystem] = {
    ON_POSTGRES: open_on_postgres,
    HOP: open_hop,
    "hawse-nowheel": open_without_wheels,
    "hawse-dearer": open_seeded("dearer"),
    "hawse-uncached": open_seeded("uncached"),
}
