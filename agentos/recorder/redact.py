"""Secrets do not belong in a record: argv and claims pass through here before they are written.

Pure, and linear in the text: agents choose it, and the kernel waits. Catches what looks like a secret by its name
(`--password X`, `TOKEN=X`, `Authorization: X`) or by itself (URL passwords, well-known token prefixes). A secret that
looks like any other word is recorded.
Environment values never come here, because they are never recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

REDACTED: Final = "[redacted]"
DEPTH_MAX: Final = 64

# A word inside a name: `db_password`, `X-Api-Key`, `GITHUB_TOKEN`, `accessToken`; not `tokenizer`, `monkey`, `author`.
_TELLING_WORDS: Final = (
    "password|passwd|passphrase|passcode|pwd|secret|secrets|token|credential|credentials|authorization|bearer|cookie|"
    "session[-_]?key|api[-_]?key|access[-_]?key|private[-_]?key|secret[-_]?key|signing[-_]?key|encryption[-_]?key|"
    "auth[-_]?key|auth|sig|signature"
)
_SECRET_NAME: Final = re.compile(rf"(?:^|[-_.\s]|(?<=[a-z0-9])(?=[A-Z]))(?:(?i:{_TELLING_WORDS}))(?:$|[-_.\s]|(?=[A-Z][a-z]))")  # fmt: skip  # noqa: E501
_JOINED_NAMES: Final = re.compile(r"(?i)^(?:mysql_?pwd|pgpassword|authtoken|accesstoken|apitoken|userpass|pass|pat)$")

_SHORT_PASSWORD: Final = re.compile(r"^(-p=)(.+)$", re.DOTALL)
_ASSIGNMENT: Final = re.compile(r"^(-{0,2}[A-Za-z_][\w.-]*)([=:]\s*)(.+)$", re.DOTALL)
_OPTION: Final = re.compile(r"^--?[A-Za-z][\w.-]*$")
_HEADER: Final = re.compile(r"(?i)\b((?:proxy-)?authorization|x-api-key|(?:set-)?cookie)(\s*[:=]\s*)([^\r\n\"']+)")
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)(\s+)([A-Za-z0-9._~+/=-]{8,})")
_USERINFO: Final = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#@]+@")
_QUERY: Final = re.compile(r"([?&;]([\w.-]+)=)([^&#;\s\"']+)")
_INLINE: Final = re.compile(r"(?<![\w.-])([\"']?([A-Za-z_][\w.-]*)[\"']?\s*[=:]\s*)([\"']?)([^\s\"'&,;}]+)")
_KNOWN_TOKENS: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|"  # code hosts
    r"sk-[\w-]{16,}|[rs]k_(?:live|test)_\w{10,}|hf_[A-Za-z0-9]{16,}|"  # model and payment providers
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|"  # clouds
    r"xox[abeoprs]-[\w-]{10,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{16,}|"
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r")"
)
_PRIVATE_KEY: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)  # fmt: skip  # noqa: E501


def redact_argv(argv: Sequence[Any]) -> list[Any]:
    """Return `argv` with secret values replaced by REDACTED; its length and everything else stay."""
    out: list[Any] = []
    after_secret_option = False
    for token in argv:
        word = token.decode("utf-8", "backslashreplace") if isinstance(token, bytes) else token
        if not isinstance(word, str):
            out.append(token)
            after_secret_option = False
            continue
        if after_secret_option and not _OPTION.match(word):
            out.append(REDACTED)
            after_secret_option = False
            continue
        after_secret_option = bool(_OPTION.match(word)) and is_secret_name(word.lstrip("-"))
        clean = _redact_token(word)
        out.append(token if clean == word else clean)
    return out


def redact_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return `claims` with the values of secret-looking keys, and secrets inside texts, replaced by REDACTED."""
    return {key: _redact_value(key, value, 0) for key, value in claims.items()}


def redact_text(value: str) -> str:
    """Return `value` with whatever looks like a secret inside it replaced by REDACTED."""
    value = _PRIVATE_KEY.sub(REDACTED, value)
    value = _USERINFO.sub(rf"\1{REDACTED}@", value)
    value = _HEADER.sub(rf"\1\2{REDACTED}", value)
    value = _BEARER.sub(rf"\1\2{REDACTED}", value)
    value = _QUERY.sub(lambda hit: hit[1] + (REDACTED if is_secret_name(hit[2]) else hit[3]), value)
    value = _INLINE.sub(lambda hit: hit[1] + hit[3] + (REDACTED if is_secret_name(hit[2]) else hit[4]), value)
    return _KNOWN_TOKENS.sub(REDACTED, value)


def is_secret_name(name: str) -> bool:
    """Whether a key, option or variable of this name usually holds a secret."""
    return bool(_SECRET_NAME.search(name) or _JOINED_NAMES.match(name))


def _redact_token(word: str) -> str:
    short = _SHORT_PASSWORD.match(word)
    if short:
        return short[1] + REDACTED
    hit = _ASSIGNMENT.match(word)
    if hit and is_secret_name(hit[1].lstrip("-")):
        return hit[1] + hit[2] + REDACTED
    return redact_text(word)


def _redact_value(key: Any, value: Any, depth: int) -> Any:
    if isinstance(key, str) and value is not None and not isinstance(value, bool) and is_secret_name(key):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if depth < DEPTH_MAX and isinstance(value, Mapping):
        return {inner: _redact_value(inner, item, depth + 1) for inner, item in value.items()}
    if depth < DEPTH_MAX and isinstance(value, list | tuple):
        return [_redact_value(None, item, depth + 1) for item in value]
    return value
