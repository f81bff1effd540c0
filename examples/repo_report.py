"""An agent that reports on a git repository: who wrote what, how large, how old. Run under examples/repo_report.yaml.

It walks the tracked files, reads each, asks git about each (a child process a file, and one that lives throughout),
calls a tool, writes build/repo-report.md, and on the way tries to read a secret, which its policy refuses.

    agentos run --policy examples/repo_report.yaml examples/repo_report.py:report
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import agentos

REPORT = Path("build/repo-report.md")


def report(files_max: str = "200", pause_s: str = "0.05") -> dict[str, int]:
    """Write the report; return how many files, lines and authors it covers. The pauses leave time to look at it."""
    names = git("ls-files").splitlines()[: int(files_max)]
    lines_by_author: Counter[str] = Counter()
    lines_by_kind: Counter[str] = Counter()
    with subprocess.Popen(
        ["git", "cat-file", "--batch-check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sizes:
        for number, name in enumerate(names, 1):
            path = Path(name)
            if not path.is_file() or path.is_symlink():
                continue
            lines = path.read_bytes().count(b"\n")
            lines_by_kind[path.suffix or path.name] += lines
            lines_by_author.update(authors_of(name))
            print(f"{number}/{len(names)} {name}: {lines} lines, {size_of(sizes, name)} bytes", flush=True)
            time.sleep(float(pause_s))
    remember_secret()
    totals = {"files": len(names), "lines": sum(lines_by_kind.values()), "authors": len(lines_by_author)}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(render(totals, dict(lines_by_kind.most_common(10)), dict(lines_by_author.most_common(10))))
    print(f"wrote {REPORT}", flush=True)
    return totals


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def authors_of(name: str) -> Counter[str]:
    """Count the lines each author last touched; a file git does not know yet has none."""
    blame = subprocess.run(["git", "blame", "--line-porcelain", "--", name], check=False, capture_output=True)
    return Counter(
        line[7:].decode(errors="replace") for line in blame.stdout.splitlines() if line.startswith(b"author ")
    )


def size_of(sizes: subprocess.Popen[str], name: str) -> str:
    assert sizes.stdin is not None
    assert sizes.stdout is not None
    sizes.stdin.write(f"HEAD:{name}\n")
    sizes.stdin.flush()
    return sizes.stdout.readline().split()[-1]


def remember_secret() -> None:
    """What a careless or talked-over agent does. The policy says no before the file is opened."""
    try:
        Path(".env").read_text()
    except agentos.PolicyViolationError as refusal:
        print(f"refused: {refusal.reason}", flush=True)


@agentos.tool
def render(totals: dict[str, int], kinds: dict[str, int], authors: dict[str, int]) -> str:
    """Lay the numbers out as Markdown."""
    rows = [f"| {kind} | {count} |" for kind, count in kinds.items()]
    people = [f"- {author}: {count} lines" for author, count in authors.items()]
    head = f"# {totals['files']} files, {totals['lines']} lines, {totals['authors']} authors"
    return "\n".join([head, "", "| kind | lines |", "|---|---|", *rows, "", "## Who", *people, ""])
