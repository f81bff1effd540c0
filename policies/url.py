r"""URLs, read strictly: what two parsers could read differently is invalid, hence denied (R3).

Not urllib: it accepts `https://good.com\@evil.com/`, embedded tabs and `http://0x7f.1/`. Sources: RFC 3986,
RFC 9110 4.2.4 (userinfo), CSP 3 (ports, wildcards of hosts), IDNA 2008 without UTS 46 mapping.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

import idna

from agentos.policies.normalise import InvalidResource

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
PORT_ONLY: Final = frozenset({"tcp", "udp"})  # schemes that name an endpoint: host and port, no path
_SPLIT: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^?#]*)(?:\?[^#]*)?(?:#.*)?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ESCAPE: Final = re.compile(r"%(..?)?", re.DOTALL)
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
_RAW: Final = re.compile('[^\x00-\x7f]+|["<>`{|}]')
_UNRESERVED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_OTHER_DOTS: Final = re.compile("[\u3002\uff0e\uff61]")  # IDNA 2003 read these as dots; others do not
_LOWER: Final = {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
HOST_CHARACTERS_MAX: Final = 253  # RFC 1035 2.3.4


@dataclass(frozen=True, slots=True)
class Split:
    """A URL cut at its delimiters, nothing judged yet. Query and fragment take no part (R3.9)."""

    scheme: str
    authority: str
    path: str


def split_url(text: str) -> Split:
    """Cut `text` into scheme, authority and path. Raises InvalidResource."""
    parts = _SPLIT.fullmatch(text)
    if parts is None:
        raise InvalidResource("not a URL")
    return Split(parts[1].lower(), parts[2], parts[3])


def normalise_url(text: str) -> str:
    """Return `text` in its one form, without query and fragment. Raises InvalidResource."""
    if _FORBIDDEN.search(text):
        raise InvalidResource("a space, a control character or a backslash in a URL")
    url = split_url(text)
    host, port = split_authority(url.authority)
    host = normalise_host(host)
    suffix = port_suffix(url.scheme, port)
    if url.scheme in PORT_ONLY:
        if url.path not in ("", "/") or not suffix:
            raise InvalidResource(f"{url.scheme}:// names a host and a port, nothing more")
        return f"{url.scheme}://{host}{suffix}"
    return f"{url.scheme}://{host}{suffix}{remove_dots(unescape(url.path) or '/')}"


def split_authority(authority: str) -> tuple[str, str]:
    """Return (host, port text or ""). Userinfo is never accepted (R3.3)."""
    if not authority:
        raise InvalidResource("no host")
    if "@" in authority:
        raise InvalidResource("user information in a URL")
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidResource("an IPv6 address ends with ']' and an optional port")
        return host + "]", rest[1:]
    host, _, port = authority.partition(":")
    if ":" in port:
        raise InvalidResource("an IPv6 address needs brackets")
    return host, port


def port_suffix(scheme: str, port: str) -> str:
    """Return `:PORT`, or "" for the default of the scheme (R3.2)."""
    if not port:
        return ""
    if not port.isascii() or not port.isdecimal() or port.startswith("0") or int(port[:6]) > 65535:
        raise InvalidResource(f"port {port[:12]!r}")
    return "" if DEFAULT_PORTS.get(scheme) == int(port) else f":{port}"


def normalise_host(host: str) -> str:
    """Return the host in lower case, as A-labels, as a canonical address; or raise InvalidResource (R3.4 to R3.6)."""
    if host.startswith("["):
        return _ipv6(host[1:-1])
    name = _ascii_host(host).removesuffix(".")
    labels = name.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(name)
    if len(name) > HOST_CHARACTERS_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise InvalidResource(f"host {host[:80]!r}")
    if "xn--" in name:
        _check_punycode(labels)
    return name


def _ascii_host(host: str) -> str:
    host = host.translate(_LOWER)  # ASCII only: str.lower makes a k of the Kelvin sign, others do not
    if host.isascii():
        return host
    if _OTHER_DOTS.search(host):
        raise InvalidResource("a host with full-width dots")
    try:
        return idna.encode(host, uts46=False).decode("ascii")
    except idna.IDNAError as error:
        raise InvalidResource(f"host is no IDNA 2008 name: {error}") from error


def _check_punycode(labels: list[str]) -> None:
    try:
        for label in labels:
            if label.startswith("xn--"):
                idna.ulabel(label)
    except idna.IDNAError as error:
        raise InvalidResource(f"host is no IDNA 2008 name: {error}") from error


def _ipv6(text: str) -> str:
    if "%" in text:
        raise InvalidResource("an IPv6 zone in a URL")
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError as error:
        raise InvalidResource(f"IPv6 address {text[:60]!r}") from error
    if address.ipv4_mapped is not None:  # `::ffff:10.0.0.1` is 10.0.0.1: one endpoint, one name
        return str(address.ipv4_mapped)
    return f"[{address.compressed}]"


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))  # refuses short, octal and hexadecimal spellings
    except ValueError as error:
        raise InvalidResource(f"IPv4 address {text[:60]!r}") from error


def unescape(path: str) -> str:
    """Decode percent-escapes of unreserved characters once (R3.7); what every client escapes is escaped."""
    if "%" in path:
        path = _ESCAPE.sub(_unescape_one, path)
    return _RAW.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8")), path)


def _unescape_one(escape: re.Match[str]) -> str:
    digits = escape[1] or ""
    if len(digits) != 2 or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise InvalidResource(f"malformed percent-escape {escape[0]!r}")
    code = int(digits, 16)
    if code < 0x20 or code == 0x7F or code in b"/\\":
        raise InvalidResource(f"percent-escape {escape[0]!r} hides a delimiter or a control character")
    return chr(code) if chr(code) in _UNRESERVED else f"%{digits.upper()}"


def remove_dots(path: str) -> str:
    """Remove `.` and `..` segments (RFC 3986 5.2.4); empty segments and the final slash stay (R3.8, R3.10)."""
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
