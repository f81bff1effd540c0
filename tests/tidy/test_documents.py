"""The documents hold together: links lead somewhere, decisions are numbered, and nothing names a machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos.errors import PolicyLoadError
from agentos.policies import Policy
from tests.tidy.rules import PRODUCT, RANKS, ROOT, files

SHIPPED = (*PRODUCT, "bin", "docs", "examples", "benchmarks", "tests")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
ADR_NAME = re.compile(r"(\d{4})-[a-z0-9]+(-[a-z0-9]+)*\.md")


def documents() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.md")),
        *(ROOT / path for path in files("docs", "examples", "benchmarks", suffix=".md")),
    ]


def anchors(text: str) -> set[str]:
    """Return the anchors that a reader's browser finds: GitHub's spelling of each heading."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield f"{document.name}: {link}"


def test_every_relative_link_leads_somewhere() -> None:
    assert [line for document in documents() for line in dead_links(document)] == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One Head\n[a](gone.md) [b](#no-head) [c](#one-head) [d](https://example.org/x) [e](page.md#one-head)\n"
    )
    assert list(dead_links(page)) == ["page.md: gone.md", "page.md: #no-head"]


def misnumbered(names: list[str], titles: list[str]) -> Iterator[str]:
    for number, (name, title) in enumerate(zip(names, titles, strict=True)):
        found = ADR_NAME.fullmatch(name)
        if not found or int(found[1]) != number or not title.startswith(f"# ADR {number:04}: "):
            yield f"{name}: expected number {number:04} in the name and in the title {title!r}"


def test_every_decision_is_numbered_in_order() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert len(records) > 1
    assert not list(misnumbered([r.name for r in records], [r.read_text().split("\n", 1)[0] for r in records]))


@pytest.mark.parametrize(
    ("name", "title"),
    [("template.md", "# ADR 0000: x"), ("0001-x.md", "# ADR 0001: x"), ("0000-x.md", "# ADR 0001: x")],
)
def test_a_misnumbered_decision_is_found(name: str, title: str) -> None:
    assert list(misnumbered([name], [title]))


def unknown_decisions(text: str, known: set[str]) -> set[str]:
    return set(re.findall(r"\bADR (\d{4})\b", text)) - known


def test_every_decision_that_is_named_exists() -> None:
    known = {path.name[:4] for path in (ROOT / "docs/adr").glob("*.md")}
    sources = [*documents(), *(ROOT / path for path in files(*PRODUCT, suffix=".py"))]
    assert not {str(path): left for path in sources if (left := unknown_decisions(path.read_text(), known))}


def test_an_unknown_decision_is_found() -> None:
    assert unknown_decisions("see ADR 0001 and ADR 0999", {"0001"}) == {"0999"}


def missing_from_the_table(ranks: dict[str, int], page: str) -> set[str]:
    """Return the modules of the lowest ranks that exist and that the page does not list at theirs."""
    listed = [re.search(rf"^{word} +(.+)$", page, re.MULTILINE) for word in ("words", "core", "adapters")]
    words = [set(re.findall(r"\w+", row[1])) if row else set() for row in listed]
    lowest = {name: rank for name, rank in ranks.items() if rank < len(words) and exists(name)}
    return {name for name, rank in lowest.items() if name.rpartition(".")[2] not in words[rank]}


def exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_the_architecture_lists_what_is_low() -> None:
    assert not missing_from_the_table(RANKS, (ROOT / "docs/ARCHITECTURE.md").read_text())


def test_a_module_that_the_architecture_does_not_list_is_found() -> None:
    page = "words      errors\ncore       values: signals\n"
    ranks = {"agentos.errors": 0, "agentos.signals": 0, "agentos.gone": 0, "agentos.runs": 2, "agentos.cli": 4}
    assert missing_from_the_table(ranks, page) == {"agentos.signals", "agentos.runs"}


MAPPED = ("supervisor", "agentos/agent", "agentos/client")


def unmapped(modules: list[str], page: str) -> set[str]:
    """Return the modules that the page's map of the rooms does not name."""
    found = re.search(r"^```\n(agentos/agent/\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    return set(modules) - set(re.findall(r"\w+", found[1] if found else ""))


def test_the_architecture_names_every_module_of_its_largest_rooms() -> None:
    modules = [Path(path).stem for path in files(*MAPPED, suffix=".py") if not path.endswith("__init__.py")]
    assert not unmapped(modules, (ROOT / "docs/ARCHITECTURE.md").read_text())


def test_a_module_without_a_place_on_the_map_is_found() -> None:
    page = "stray\n```\nagentos/agent/\n  its life   entry (stray words)\nsupervisor/\n  Linux  tree\n```\nlost\n"
    assert unmapped(["entry", "tree", "lost"], page) == {"lost"}
    assert unmapped(["entry"], "no map: entry") == {"entry"}


# R7.2, or a range such as R3.4 to R3.6, of which both ends are named.
RULE_NUMBER = re.compile(r"\bR[1-9][0-9]?(?:\.[1-9][0-9]?)?\b")
RULE_TEXT = re.compile(r"^(?:### |- \*\*)(R[0-9.]+)(?:\*\*)? ", re.MULTILINE)


def unexplained_rules(text: str, page: str) -> set[str]:
    return set(RULE_NUMBER.findall(text)) - set(RULE_TEXT.findall(page))


def test_every_rule_of_the_policies_that_is_cited_is_explained() -> None:
    page = (ROOT / "docs/policies.md").read_text()
    sources = [*documents(), *(ROOT / path for path in files(*PRODUCT, "tests", suffix=".py"))]
    assert not {str(path): left for path in sources if (left := unexplained_rules(path.read_text(), page))}


def test_an_unexplained_rule_is_found() -> None:
    page = "### R1 Patterns\n\n- **R1.1** A final star.\n\nR1.2 is only mentioned.\n"
    assert unexplained_rules("(R1, R1.1 to R1.2), R" + "16", page) == {"R1.2", "R" + "16"}


def policy_examples(document: str) -> list[str]:
    """Return the fenced YAML that is a whole policy, and not a piece of one."""
    blocks: list[str] = re.findall(r"^```yaml\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if re.search(r"^name:", block, re.MULTILINE)]


@pytest.mark.parametrize("document", ["README.md", "docs/policies.md"])
def test_every_policy_that_a_document_shows_loads(document: str) -> None:
    examples = policy_examples((ROOT / document).read_text())
    assert examples
    assert all(Policy.from_yaml(example).rules for example in examples)


def test_a_policy_that_does_not_load_is_found() -> None:
    (example,) = policy_examples("```yaml\nname: x\nrules: [{action: alow}]\n```\n\n```yaml\nother: 1\n```\n")
    with pytest.raises(PolicyLoadError):
        Policy.from_yaml(example)


def test_the_examples_decide_what_is_written_beside_them() -> None:
    reports, _, careful = map(Policy.from_yaml, policy_examples((ROOT / "docs/policies.md").read_text()))
    read = {name for name in ("data/a/b", "data/private/x/y", "data", "templates/a.html", "templates/old/a.html")
            if reports.decide("read", name).allowed}  # fmt: skip
    assert read == {"data/a/b", "templates/a.html"}
    assert reports.decide("write", "out/a.html").allowed
    pushes = [careful.decide("execute", "/usr/bin/git", argv=["git", "push"]).reason for _ in range(11)]
    assert pushes == ["allowed_by_rule"] * 10 + ["rate_limited"]
    assert not careful.decide("read", "/etc/hosts").allowed


def first_commands(readme: str) -> list[str]:
    block = re.search(r"^## Getting started\n+```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return block[1].splitlines() if block else []


def test_two_commands_get_a_stranger_started() -> None:
    """They are run as they stand, from a fresh clone: no third one, no comment, nothing to fill in."""
    run, test = first_commands((ROOT / "README.md").read_text())
    assert run.startswith("bin/agentos run ")
    assert test == "bin/test"
    assert all((ROOT / word.partition(":")[0]).is_file() for word in run.split() if "/" in word)


def test_a_third_command_is_found() -> None:
    assert len(first_commands("## Getting started\n\n```sh\na\nb\nc\n```\n")) == 3


NAMED = re.compile(r"(?<![\w./])(?:agentos|agent_os|supervisor|sandbox|policies|tests|bin)/[\w./-]+\.(?:py|yaml|sh)")


def absent_files(text: str) -> set[str]:
    return {name for name in NAMED.findall(text) if not (ROOT / name).is_file()}


def test_every_file_that_a_document_names_exists() -> None:
    assert not {str(path): left for path in documents() if (left := absent_files(path.read_text()))}


def test_an_absent_file_is_found() -> None:
    assert absent_files("read supervisor/gone.py, then `tests/conftest.py`") == {"supervisor/gone.py"}


# A document that is not in the repository: whoever reads the citation cannot look it up.
ELSEWHERE = re.compile(r"\b" + "DES" + r"IGN\b")


def test_nothing_cites_a_document_that_is_not_here() -> None:
    shipped = [ROOT / path for top in SHIPPED for path in files(top, suffix="") if "__pycache__" not in path]
    assert not [str(path) for path in {*documents(), *shipped} if ELSEWHERE.search(path.read_text())]


def test_a_citation_of_it_is_found() -> None:
    assert ELSEWHERE.search("on stable storage (DES" + "IGN 5)")
    assert not ELSEWHERE.search("the design of it")


# Paths of somebody's machine. Tests may use any path as an example; documents may not even use a temporary one.
MACHINE = re.compile(r"(?<![\w.~])/(?:work|root|home/\w+|Users/\w+)/")
TEMPORARY = re.compile(r"(?<![\w.~])/tmp/")


def test_the_project_speaks_of_itself_alone() -> None:
    shipped = [
        ROOT / path for top in (*PRODUCT, "bin", "docs", "examples", "benchmarks") for path in files(top, suffix="")
    ]
    texts = {path: path.read_text() for path in [*documents(), *shipped] if "__pycache__" not in path.parts}
    found = {str(path): hits for path, text in texts.items() if (hits := MACHINE.findall(text))}
    found |= {str(path): hits for path in documents() if (hits := TEMPORARY.findall(texts[path]))}
    assert not found


def test_a_machine_path_is_found() -> None:
    assert MACHINE.findall("see /ro" + "ot/checkout/README.md")
    assert TEMPORARY.findall("write to /t" + "mp/x")
    assert not MACHINE.findall("~/root/notes, data/root/x, $HOME/root/x, https://example.org/home/")
