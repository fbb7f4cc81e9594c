"""Ports of this machine: where the processes of `up` listen."""

import socket

HOST = "127.0.0.1"


def is_listening(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((HOST, port)) == 0
