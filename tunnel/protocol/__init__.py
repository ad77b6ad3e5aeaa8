"""The sans-IO core of the tunnel: bytes in, events out; no trio, no sockets, no clock. See PROTOCOL.md."""
