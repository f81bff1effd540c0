"""Random policies, names and moments, small enough in alphabet that rules and requests meet."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from agentos.errors import PolicyLoadError
from agentos.policies import Pattern, Policy, Rule

LITERALS = ["a", "b", "c", "ab", ".x", "x.y", "a*", "d[1]"]  # the last two as names: characters that mean something
SEGMENTS = ["a", "b", "c", "ab", ".x", "x.y", "a\\*", "d\\[1]"]
WILD = ["*", "?", "a*", "*b", "*.*", "[ab]", "[!a]", "[a-c]*", "{a,b}", "{a,x.{y,z}}", "??", "[.-0]x"]
HOSTS = ["h", "a.h", "b.h", "b.a.h", "1.2.3.4", "[::1]"]
HOST_PATTERNS = [*HOSTS, "*.h", "*.a.h", "*", "a*.h", "?.h"]
REGEXES = [
    r"a/\w+",
    r"[ab]/.*",
    r"/a(/b)?",
    r"(a|b|c)",
    r"https://h/.*",
    r".*x",
    r"[^/]+",
    r"a|b/c",
    r".*b$",
    r"^a/.*",
    r"\.x",
]
PROGRAMS = ["a", "ab", "/a/b", "/b/a", "a/b", "/a/ab"]
PROGRAM_PATTERNS = [
    "a",
    "a*",
    "/a/b",
    "/a/*",
    "*",
    "[ab]",
    "{a,b} c",
    "a b",
    "a b *",
    "* {b,c}",
    "/b/* a",
    "a/b c/*",
    "?? *b",
    "a **/c",
]
WORDS = ["a", "b", "c", "ab", "c/d", "", "a/b/c"]
OPERATIONS = ["read", "write", "write/delete", "network", "network/connect", "execute"]
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


class World:
    """Everything drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def maybe(self, chance: float) -> bool:
        return self.draw.random() < chance

    def pick(self, *choices: Any) -> Any:
        return self.draw.choice(choices)

    # --- names ---

    def name(self) -> str:
        kind = self.draw.random()
        if kind < 0.04:
            return self.pick(".", "./", "/", "unix:@a", "unix:@a/b", "unix:/a/b")
        path = "/".join(self.draw.choices(LITERALS, k=self.draw.choice([1, 1, 2, 2, 3, 4, 6])))
        if kind < 0.6:
            return path + self.pick("", "", "", "/")
        if kind < 0.75:
            return f"/{path}" + self.pick("", "", "/")
        scheme, port = self.pick("https", "https", "http"), self.pick("", "", ":8080")
        inner = (
            self.pick("", path, path, path + "/", path.replace("/", "//", 1)).replace("[", "%5B").replace("]", "%5D")
        )
        return f"{scheme}://{self.draw.choice(HOSTS)}{port}/{inner}"

    # --- patterns ---

    def path(self) -> str:
        size = self.draw.choice([1, 1, 2, 2, 3, 4])
        segments = [
            self.pick(*WILD) if self.maybe(0.3) else "**" if self.maybe(0.1) else self.pick(*SEGMENTS)
            for _ in range(size)
        ]
        if self.maybe(0.35):
            segments.append(self.pick("*", "*", "**"))
        return "/".join(segments)

    def glob(self) -> str:
        kind = self.draw.random()
        if kind < 0.05:
            return self.pick("*", "**", "./*", "**/*", "/*", "/", ".", "unix:@*", "unix:/a/*", "unix:@a")
        if kind < 0.65:
            return self.path() + self.pick("", "", "", "/")
        if kind < 0.8:
            return "/" + self.path()
        port = self.pick("", "", "", ":8080", ":*")
        scheme = self.pick("https", "https", "http", "{http,https}")
        inner = self.pick("", "*", self.path(), self.path() + "/").replace("\\[", "%5B").replace("1]", "1%5D")
        return f"{scheme}://{self.draw.choice(HOST_PATTERNS)}{port}/{inner}"

    def pattern(self) -> Pattern:
        operation = self.pick(*OPERATIONS, "*", ["read", "write"], ["write/delete", "network"])
        match_type = "regex" if self.maybe(0.15) else "glob"
        programs = operation == "execute"

        def one() -> str:
            return (
                self.pick(*REGEXES)
                if match_type == "regex"
                else self.pick(*PROGRAM_PATTERNS)
                if programs
                else self.glob()
            )

        resource = one() if self.maybe(0.8) else [one(), one()]
        exclude = None if self.maybe(0.7) else one()
        try:
            return Pattern(operation, resource, match_type, self.conditions() if self.maybe(0.25) else None, exclude)
        except PolicyLoadError:  # `**` with a wildcard within braces, say: the loader's tests are about these
            return self.pattern()

    def conditions(self) -> dict[str, Any]:
        every = {
            "user_role": self.pick("admin", ["admin", "op"], ["guest"], [1, "admin"], True),
            "time_window": self.pick(
                {"start": "09:00", "end": "17:00"}, {"start": "22:00", "end": "06:00"},
                {"start": "12:00", "end": "24:00"},
                {"start": "12:30", "end": "13:30", "timezone": "Europe/Berlin"},
            ),
            "max_cost": self.pick(1, 10, 0.5),
            "granted": self.pick(True, False),
            "context": {"k": self.pick("v", 1, [1.5, "w"])},
        }  # fmt: skip
        return {key: every[key] for key in self.draw.sample(sorted(every), self.draw.choice([1, 1, 2, 3]))}

    def rule(self) -> Rule:
        action = self.pick("allow", "allow", "allow", "deny", "deny", "ask")
        limit = self.pick(1, 2, 5) if self.maybe(0.3) else None
        return Rule(action, self.pattern(), rate_limit=limit, reason=self.pick(None, None, "because"))

    def policy(self, size: int, *, name: str = "p") -> Policy:
        return Policy(
            name,
            rules=[self.rule() for _ in range(size)],
            default_action=self.pick("deny", "deny", "allow"),
            inheritance=self.pick("strict", "strict", "permissive", "none"),
            enforce=not self.maybe(0.1),
        )

    # --- moments ---

    def permissions(self) -> list[str] | None:
        few = [["read", "write", "execute", "network"], ["read"], ["*"], ["network/connect", "write"], []]
        return self.pick(*few) if self.maybe(0.25) else None

    def context(self) -> dict[str, Any]:
        whole = {
            "user_role": self.pick("admin", "guest", "op", 1, True, None, ["admin"]),
            "cost": self.pick(0, 0.5, 1, 5, 50, float("nan"), -1, "1", True),
            "k": self.pick("v", "w", 1, 1.5, None),
        }
        return {key: value for key, value in whole.items() if self.maybe(0.7)}

    def moment(self) -> dict[str, Any]:
        operation = self.pick(*OPERATIONS)
        asked = self.pick(*PROGRAMS) if operation == "execute" else self.name()
        resolved = None
        if self.maybe(0.2):
            resolved = self.pick(*PROGRAMS) if operation == "execute" else self.name()
        words = (asked, *self.draw.choices(WORDS, k=self.draw.randrange(4)))
        return {
            "operation": operation,
            "names": [asked] if resolved in (None, asked) else [asked, resolved],
            "argv": words if operation == "execute" and self.maybe(0.7) else None,
            "context": self.context(),
            "claims": self.context() if self.maybe(0.3) else {},
            "at": NOON + timedelta(minutes=30 * self.draw.randrange(48)),
        }
