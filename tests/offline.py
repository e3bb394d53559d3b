"""No test reaches out: connections to other machines are refused in every process of the tests, and counted.

`tests/conftest.py` and `tests/run_scripts.py` call `stay_here` before anything else, their forks inherit it.
"""
import errno
import os
import socket

ASKED: list = []      # addresses that somebody wanted, in this process
HERE = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}


def is_here(address) -> bool:
    "Whether an address is this machine: a socket's file, or a name of its own."
    return not isinstance(address, tuple) or str(address[0]) in HERE or str(address[0]).startswith("127.")


def stay_here():
    "Refuse to connect elsewhere, as a machine without a network does."
    for name in ("connect", "connect_ex"): setattr(socket.socket, name, _only_here(getattr(socket.socket, name)))


def _only_here(call):
    def connect(self, address):
        if is_here(address): return call(self, address)
        ASKED.append(address)
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH), str(address))
    return connect
