"""Policies as YAML: strict loading with file, line and column, and writing that loads back the same (R14).

    name: healthcare
    version: 1.0.0                  # optional, as are description, default_action, inheritance, runtime, enforce
    default_action: deny
    rules:
      - action: allow               # allow | deny | ask
        operation: read             # or a list; "*" is quoted
        resource: data/*            # or a list
        exclude: [data/phi/*]       # text or list
        conditions: {user_role: [admin], time_window: {start: "09:00", end: "17:00"}}
        reason: Reading what is not sensitive
      # also: name, description, match_type, on_violation, rate_limit, audit, ask_timeout (seconds)

The keys are those of `Policy`, `Pattern` and `Rule`, flat (`ask_timeout` is `Rule.ask_timeout_s`). Scalars are text
until a field wants a number or a boolean, so `version: 1.10`, `end: 17:00` and `name: on` mean what they say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import yaml

from agentos.errors import PolicyLoadError, nearest
from agentos.policies.faults import FieldError
from agentos.policies.model import Policy
from agentos.policies.rule import PATTERN_KEYS, RULE_KEYS, Pattern, Rule

FILE_BYTES_MAX: Final = 16 << 20  # ten thousand rules take two
POLICY_KEYS: Final = ("name", "version", "description", "default_action", "inheritance", "runtime", "enforce", "rules")
VALUES_MAX: Final = 1_000_000  # texts read from one file, repeated aliases counted: no bomb of a few lines
_FLAGS: Final = {"true": True, "false": False}
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|-?\.inf|\.nan")
_ODD_BREAK: Final = re.compile(
    "[\r\x85\u2028\u2029\ufeff]"
)  # line breaks to YAML: between single quotes they become blanks
_QUOTED: Final = ("'", '"', "|", ">")  # libyaml says "" for plain, the Python parser None
_PLAIN_TAGS: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
# libyaml where it is built in: ten times faster.
_BaseLoader: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

T = TypeVar("T")
Node = yaml.ScalarNode | yaml.SequenceNode | yaml.MappingNode


def load(text_or_path: str | os.PathLike[str]) -> Policy:
    """Load a policy from YAML text, a path object, or one line ending in .yaml or .yml. Raises PolicyLoadError."""
    if isinstance(text_or_path, str) and not _is_path(text_or_path):
        return parse(text_or_path, "<text>")
    path = Path(text_or_path)
    return parse(read(path), str(path))


def read(path: Path) -> str:
    """Return the text of a policy file. Raises PolicyLoadError."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)  # never more: it may be a device
        return raw.decode("utf-8")
    except OSError as error:
        raise PolicyLoadError(f"cannot read it: {error.strerror}", source=str(path)) from error
    except UnicodeDecodeError as error:
        line, column = _place(raw[: error.start].decode("utf-8"))
        raise PolicyLoadError(f"not UTF-8: byte {error.start}", source=str(path), line=line, column=column) from error
    except ValueError as error:  # a NUL in the name
        raise PolicyLoadError(f"cannot read it: {error}", source=str(path)) from error


@lru_cache(maxsize=16)
def _builtin_text(name: str) -> str:
    return resources.files("agentos.policies").joinpath("builtin", f"{name}.yaml").read_text("utf-8")


def load_builtin(name: str) -> Policy:
    """Return a built-in policy; the caller has checked the name."""
    return parse(_builtin_text(name), f"builtin/{name}.yaml")


def parse(text: str, source: str) -> Policy:
    """Build the policy that `text` describes; `source` is what errors call it. Raises PolicyLoadError."""
    return _Reader(source).policy(_compose(text, source))


def dump(policy: Policy) -> str:
    """Return the policy as YAML; every scalar that could be misread is quoted.

    Raises PolicyLoadError for a policy bounded by a parent or restricted: a file cannot say that.
    """
    if policy.parent is not None or policy.restrictions:
        raise PolicyLoadError("a bounded or restricted policy has no YAML form; write its parts", source=policy.name)
    return yaml.dump(policy.as_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes, besides what YAML would misread, what this loader would type: `1e5` as a text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = isinstance(_typed(text), str) and not _ODD_BREAK.search(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def _is_path(text: str) -> bool:
    return "\n" not in text and text.strip().endswith((".yaml", ".yml"))


def _compose(text: str, source: str) -> Node:
    if len(text) > FILE_BYTES_MAX:
        raise PolicyLoadError(f"larger than {FILE_BYTES_MAX} bytes", source=source)
    try:
        node: Any = yaml.compose(text, Loader=_BaseLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text, source) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise PolicyLoadError(f"not YAML: {error}", source=source) from error
    if node is None:
        raise PolicyLoadError("empty: a policy needs at least a name", source=source, line=1, column=1)
    root: Node = node
    return root


def _syntax(error: yaml.MarkedYAMLError, text: str, source: str) -> PolicyLoadError:
    mark = error.problem_mark or error.context_mark
    if error.context_mark and "end of stream" in (error.problem or ""):
        mark = error.context_mark  # where the quotes begin that never end
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    if re.search(r"[:\-\[,]\s*\*", here):
        advice = 'quote the *: operation: "*" (a bare * begins an alias in YAML)'
        return PolicyLoadError(advice, source=source, line=line, column=here.index("*") + 1)
    return PolicyLoadError(f"not YAML: {error.problem or error.context}", source=source, line=line, column=column)


class _Reader:
    """Reads nodes into values, and turns what the constructors refuse into errors with a place."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.values = 0

    def fail(self, node: Node, message: str) -> NoReturn:
        mark = node.start_mark
        raise PolicyLoadError(message, source=self.source, line=mark.line + 1, column=mark.column + 1)

    def policy(self, root: Node) -> Policy:
        fields = self.fields(root, POLICY_KEYS, "a policy")
        if "name" not in fields:
            self.fail(root, "a policy needs a name")
        rules = fields.pop("rules", None)
        values = {key: self.value(key, node) for key, node in fields.items()}
        built = [self.rule(node) for node in self.items(rules)]
        return self.built(root, fields, lambda: Policy(rules=built, **values))

    def rule(self, node: Node) -> Rule:
        fields = self.fields(node, RULE_KEYS, "a rule")
        for key in ("action", "operation", "resource"):
            if key not in fields:
                self.fail(node, f"a rule needs {key}")
        values = {key: self.value(key, value) for key, value in fields.items()}
        pattern = {key: values.pop(key) for key in PATTERN_KEYS if key in values}
        if "ask_timeout" in values:
            values["ask_timeout_s"] = values.pop("ask_timeout")
        action = values.pop("action")
        return self.built(node, fields, lambda: Rule(action, Pattern(**pattern), **values))

    def built(self, node: Node, fields: Mapping[str, Node], build: Callable[[], T]) -> T:
        """Call a constructor; a FieldError gets the place of the field that it names."""
        try:
            return build()
        except FieldError as error:
            self.fail(_at(node, fields, error.path), error.message)

    # --- nodes ---------------------------------------------------------------------------------------------------

    def fields(self, node: Node, known: tuple[str, ...], what: str) -> dict[str, Node]:
        """Return the mapping's values by key; unknown and doubled keys are errors at the key."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} is a mapping of keys to values, not {_kind(node)}")
        self.untagged(node)
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = self.key(key, found)
            if name not in known:
                self.fail(key, f"unknown key {name!r}{nearest(name, known)}; {what} has {', '.join(known)}")
            found[name] = value
        return found

    def key(self, key: Node, found: Mapping[str, object]) -> str:
        if not isinstance(key, yaml.ScalarNode):
            self.fail(key, f"a key is text, not {_kind(key)}")
        name = self.scalar(key)
        if name in found:
            self.fail(key, f"the key {name!r} stands here twice")
        return name

    def items(self, node: Node | None) -> list[Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, f"rules is a list, not {_kind(node)}; begin each rule with '- '")
        self.untagged(node)
        return list(node.value)

    def value(self, key: str, node: Node) -> Any:
        """Return the field's value in the type that the field wants."""
        if key == "conditions":
            return self.conditions(node)
        if key in ("operation", "resource", "exclude"):
            return self.scalars(node)
        if key in ("runtime", "enforce"):
            return self.flag(node, key)
        if key in ("rate_limit", "ask_timeout"):
            return self.number(node, key)
        return self.scalar(node)

    def scalars(self, node: Node) -> str | list[str]:
        if not isinstance(node, yaml.SequenceNode):
            return self.scalar(node)
        self.untagged(node)
        return [self.scalar(item) for item in node.value]

    def scalar(self, node: Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, f"one text is wanted here, not {_kind(node)}")
        self.untagged(node)
        self.values += 1
        if self.values > VALUES_MAX:
            self.fail(node, f"more than {VALUES_MAX} values, aliases counted as often as they stand")
        return str(node.value)

    def untagged(self, node: Node) -> None:
        if node.tag is not None and node.tag not in _PLAIN_TAGS:
            self.fail(node, f"tags such as {node.tag} are not accepted")

    def plain(self, node: Node) -> str | bool | int | float:
        """Return a scalar, typed where it stands without quotes."""
        text = self.scalar(node)
        return _typed(text) if isinstance(node, yaml.ScalarNode) and node.style not in _QUOTED else text

    def flag(self, node: Node, key: str) -> bool:
        found = self.plain(node)
        if not isinstance(found, bool):
            self.fail(node, f"{key} is true or false, not the text {found!r}")
        return found

    def number(self, node: Node, key: str) -> int | float:
        found = self.plain(node)
        if isinstance(found, (bool, str)):
            self.fail(node, f"{key} is a number, not the text {str(found)!r}")
        return found

    def conditions(self, node: Node) -> Any:
        """Return conditions with plain true/false and numbers typed, everything else text; times stay text."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"conditions is a mapping of keys to values, not {_kind(node)}")
        return self.mapping(node, self.condition)

    def condition(self, name: str, node: Node) -> Any:
        """Return one condition: a value, a list of values, or a mapping of keys to these; nothing deeper."""
        read = self.scalar if name == "time_window" else self.one_or_more
        return self.mapping(node, lambda _, value: read(value)) if isinstance(node, yaml.MappingNode) else read(node)

    def one_or_more(self, node: Node) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self.plain(node)
        self.untagged(node)
        return [self.plain(item) for item in node.value]

    def mapping(self, node: yaml.MappingNode, read: Callable[[str, Node], Any]) -> dict[str, Any]:
        self.untagged(node)
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = self.key(key, found)
            found[name] = read(name, value)
        return found


def _typed(text: str) -> str | bool | int | float:
    if text in _FLAGS:
        return _FLAGS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if _NUMBER.fullmatch(text) else text


def _place(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of what follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _kind(node: Node) -> str:
    return {yaml.ScalarNode: "text", yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}[type(node)]


def _at(node: Node, fields: Mapping[str, Node], path: tuple[str | int, ...]) -> Node:
    """Return the node that `path` leads to: the key where a mapping's key is meant, else the value."""
    here: Node = fields.get(str(path[0]), node) if path else node
    for step in path[1:]:
        if isinstance(here, yaml.SequenceNode) and isinstance(step, int) and step < len(here.value):
            here = here.value[step]
        elif isinstance(here, yaml.MappingNode):
            here = next((key if step == path[-1] else value for key, value in here.value if key.value == step), here)
    return here
