"""The rule sets that stand before every policy: @self, @private, @command, @runtime (docs/policies.md).

@self keeps agents from changing agentos and from reading its keys; nothing overrides it. @private is the agent's
own temporary directory. @command lets the named program be loaded and the agent's own source be imported (an agent
that reads it as a file asks its policy like anybody). @runtime lets
interpreters and libraries be read; a policy may drop it. All by absolute path; the interceptor also holds @self by
inode. Reads nothing from disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentos.actions import base_operation
from agentos.errors import BadRequest
from agentos.policies.decision import Effect
from agentos.policies.normalise import InvalidResource, file_resource

# What every dynamically linked program reads before its first line: libraries, locale, time zone, certificates.
RUNTIME_TREES: Final = (
    "/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/local/lib",
    "/usr/share/locale", "/usr/share/i18n", "/usr/share/zoneinfo", "/usr/share/terminfo", "/usr/share/ca-certificates",
    "/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust", "/etc/ca-certificates", "/etc/ld.so.conf.d",
    "/etc/terminfo", "/etc/alternatives",
)  # fmt: skip
RUNTIME_FILES: Final = frozenset({
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/localtime", "/etc/timezone", "/etc/locale.alias",
    "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/host.conf",
    "/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/mime.types", "/dev/null", "/dev/zero", "/dev/full",
    "/dev/random", "/dev/urandom", "/proc/filesystems", "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible",
})  # fmt: skip
RUNTIME_WRITABLE: Final = frozenset({"/dev/null", "/dev/zero", "/dev/full"})
MOVING: Final = frozenset({"write/rename", "write/delete", "write/unlink", "write/rmdir"})
SOURCE_SUFFIXES: Final = (".py", ".pyc", ".so", ".pyi")
SHARED_PREFIXES: Final = ("/", "/usr", "/usr/local")  # a Python lives in parts of these, people's files in others
PREFIX_PARTS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "include", "share", "pyvenv.cfg")


@dataclass(frozen=True, slots=True)
class Standing:
    """The compiled sets; each tuple holds path prefixes that end in `/`. Build it with `standing()`."""

    write_denied: tuple[str, ...] = ()
    read_denied: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    runtime_files: frozenset[str] = frozenset()
    runtime_writable: frozenset[str] = frozenset()

    def verdict(self, operation: str, absolute: str, *, runtime: bool) -> tuple[str, Effect] | None:
        """Return (layer, effect) for a normalised absolute path, None when no set speaks about it."""
        base = base_operation(operation)
        probe = absolute if absolute.endswith("/") else absolute + "/"  # `/x/` covers /x and what is below, not /xy
        if base in ("read", "write") and probe.startswith(self.private):
            return "@private", "allow"  # first: it lies in the runtime directory; a link out of it has another name
        if probe.startswith(self.read_denied if base != "write" else self.write_denied):
            return "@self", "deny"
        if operation in MOVING and any(kept.startswith(probe) for kept in self.write_denied):
            return "@self", "deny"  # moving a parent directory away moves what is in it
        if base in ("read", "execute") and probe.startswith(self.command):
            return "@command", "allow"
        if operation == "read/import" and self._is_code(absolute):
            return "@command", "allow"
        if runtime and base == "read" and (absolute in self.runtime_files or probe.startswith(self.runtime)):
            return "@runtime", "allow"
        if runtime and base == "write" and absolute in self.runtime_writable:
            return "@runtime", "allow"
        return None

    def _is_code(self, absolute: str) -> bool:
        """Whether it is Python source or a listing below a code path; not if hidden: no package begins with a dot."""
        for root in self.code:
            below = absolute[len(root) :] if absolute.startswith(root) else None
            if below is None or below.startswith(".") or "/." in below:
                continue
            return absolute.endswith(("/", *SOURCE_SUFFIXES))
        return absolute + "/" in self.code and absolute.endswith(SOURCE_SUFFIXES)


def standing(
    *,
    sys_prefixes: Iterable[str] = (),
    package_dir: str | None = None,
    self_paths: Iterable[str] = (),
    secret_self_paths: Iterable[str] = (),
    private_paths: Iterable[str] = (),
    command_paths: Iterable[str] = (),
    code_paths: Iterable[str] = (),
) -> Standing:
    """Return the sets for one agent; all paths absolute and, where links are involved, given in both forms.

    `self_paths`: policy files, agentos.yaml, bin/; `secret_self_paths`: state and runtime directories, keys,
    sockets; `private_paths`: the agent's own temporary directory. Of a prefix that people share (`/usr`) only the
    parts where a Python lives are meant. Raises BadRequest for a path to protect that no name can match; such a path
    to allow is dropped.
    """
    installed = [part for prefix in sys_prefixes for part in _parts(prefix)]
    package = [package_dir] if package_dir else []
    secret = _protected(secret_self_paths)
    return Standing(
        write_denied=_protected([*installed, *package, *self_paths]) + secret,
        read_denied=secret,
        private=_prefixes(private_paths),
        command=_prefixes(command_paths),
        code=_prefixes(code_paths),
        runtime=_prefixes([*RUNTIME_TREES, *installed, *package]),
        runtime_files=RUNTIME_FILES,
        runtime_writable=RUNTIME_WRITABLE,
    )


def _parts(prefix: str) -> list[str]:
    bare = prefix.rstrip("/") or "/"
    if bare not in SHARED_PREFIXES:
        return [bare]
    return [f"{bare.rstrip('/')}/{part}" for part in PREFIX_PARTS]


def _protected(paths: Iterable[str]) -> tuple[str, ...]:
    wanted = [path for path in paths if path]
    for path in wanted:
        if _prefix(path) is None:
            raise BadRequest(f"cannot protect {path!r}: it must be absolute, below the root, of ordinary characters")
    return _prefixes(wanted)


def _prefixes(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(prefix for path in paths if (prefix := _prefix(path)) is not None))


def _prefix(path: str) -> str | None:
    """Return what the names of a path and of all that is below it begin with; None where no name can."""
    if not path.startswith("/"):
        return None
    try:
        name = file_resource(path, cwd="/", workspace=None).rstrip("/")
    except InvalidResource:
        return None
    return f"{name}/" if name else None
