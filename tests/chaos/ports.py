"""Ports of programs that are started again on the same port."""

import socket

_reservations = []


def reserved_port():
    """Returns a port that nothing else gets until this process ends. The system gives a port that is bound to no outgoing connection, and
    a program that sets `SO_REUSEADDR`, as servers do, can listen on it nevertheless."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    _reservations.append(reservation)
    return reservation.getsockname()[1]
