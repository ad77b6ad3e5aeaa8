"""One end of a session, composed of objects with one responsibility each."""

from tunnel.protocol.connection.connection import Connection
from tunnel.protocol.session.status import Phase, Role

__all__ = ["Connection", "Phase", "Role"]
