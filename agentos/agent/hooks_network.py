"""Audit events about sockets: which peer is meant, as the URL that policies speak of.

A connection to port 443 or 80 is `https://HOST/` or `http://HOST/`, any other `tcp://HOST:PORT`; HOST is the name that
this process looked the address up by, else the address. A look-up is an action itself, because it leaves the machine.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from agentos.agent.wanted import Wanted

ADDRESSES_REMEMBERED: Final = 4_096  # names of addresses, the oldest forgotten first
_WEB: Final = {443: "https", 80: "http"}
_HERE: Final = frozenset({"", "localhost"})  # looked up without leaving the machine
_names: dict[str, str] = {}  # address → the name that it was last looked up by


def _connect(sock: socket.socket, address: Any) -> Iterator[Wanted]:
    yield Wanted("network/connect", _peer(sock, address))


def _send(sock: socket.socket, address: Any) -> Iterator[Wanted]:
    if address is not None:  # else the socket is connected, and that was decided
        yield Wanted("network/send", _peer(sock, address))


def _bind(sock: socket.socket, address: Any) -> Iterator[Wanted]:
    yield Wanted("network/bind", _peer(sock, address))


def _look_up(host: Any, port: Any, *_: Any) -> Iterator[Wanted]:
    name = _text(host) if host is not None else ""
    if name not in _HERE and not _is_address(name):
        yield Wanted("network/resolve", _url("tcp", name, _port_number(port)))


def _look_up_name(host: Any) -> Iterator[Wanted]:
    yield from _look_up(host, None)


def _look_up_address(address: Any) -> Iterator[Wanted]:
    host = address[0] if isinstance(address, tuple) else address
    yield Wanted("network/resolve", _url("tcp", _text(host), None))


EVENTS: Final[dict[str, Callable[..., Iterable[Wanted]]]] = {
    "socket.connect": _connect,
    "socket.sendto": _send,
    "socket.sendmsg": _send,
    "socket.bind": _bind,
    "socket.getaddrinfo": _look_up,
    "socket.gethostbyname": _look_up_name,
    "socket.gethostbyaddr": _look_up_address,
    "socket.getnameinfo": _look_up_address,
}


def wrap() -> None:
    """Remember which name an address was looked up by."""
    original = socket.getaddrinfo

    @functools.wraps(original)
    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(host, *args, **kwargs)
        if host is not None:
            name = _text(host)
            for *_, address in found:
                _remember(str(address[0]), name)
        return found

    socket.getaddrinfo = getaddrinfo


def _remember(address: str, name: str) -> None:
    if address == name:
        return
    _names.pop(address, None)  # the newest goes last
    _names[address] = name
    if len(_names) > ADDRESSES_REMEMBERED:
        del _names[next(iter(_names))]


def _peer(sock: socket.socket, address: Any) -> str:
    if sock.family == socket.AF_UNIX:
        return _unix(address)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return f"socket/{getattr(sock.family, 'name', sock.family)}/{address!r}"
    host, port = _text(address[0]), int(address[1])
    scheme = "udp" if sock.type == socket.SOCK_DGRAM else "tcp"
    return _url(scheme, _names.get(host, host) or "0.0.0.0", port)  # noqa: S104 - what "" means in an address


def _url(scheme: str, host: str, port: int | None) -> str:
    host = host.partition("%")[0]  # the zone of a link-local address says which interface, not who
    if ":" in host:
        host = f"[{host}]"
    if scheme == "tcp" and port in _WEB:
        return f"{_WEB[port]}://{host}/"
    return f"dns://{host}/" if port is None else f"{scheme}://{host}:{port}"


def _unix(address: Any) -> str:
    name = os.fsdecode(address)
    if name.startswith("\0") or not name:
        return f"unix:@{name[1:]}"
    return f"unix:{os.path.realpath(name)}"


def _port_number(port: Any) -> int | None:
    if port is None or port == 0:
        return None
    try:
        return int(port)
    except ValueError:
        return socket.getservbyname(_text(port))


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def _text(value: Any) -> str:
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes | bytearray) else str(value)
