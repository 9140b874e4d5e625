"""The ledger of claims: tables made from ``book/claims.yaml`` and the published records, where the page asks for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from reprolib.book.layout import Layout
from reprolib.errors import InvalidInput
from reprolib.experiments import module
from reprolib.experiments.judged import judged
from reprolib.records.claims import FINDINGS, HOLDS, OPEN, PAPERS, Claim, claims, status
from reprolib.records.verdict import DRAWINGS, STATEMENTS, in_words
from reprolib.tasks import task

MARKER = re.compile(r"^<!-- ledger: (\S+) -->$", re.MULTILINE)
ERRATUM = re.compile(r"\bE-[a-z]+-\d+\b")
NAMES = dict(zip(PAPERS, ("RED", "NewtonSummary", "ADLER", "CurveBall", "CSDD", "all five"), strict=True))
TESTED = (HOLDS, *FINDINGS.values())
# how statements may stand, and how figures and settings may; "open" is both
STANDINGS = {"statements": (*TESTED, *STATEMENTS, OPEN), "figures and settings": (*DRAWINGS, OPEN)}
CHANGED = {
    "criterion": "Criterion",
    "desk": "Criterion at scale desk",
    "night": "Criterion at scale night",
    "code": "How it is judged",
}
Rows = Sequence[dict[str, str]]


def filled(page: str, layout: Layout) -> str:
    """``page`` with every marker ``<!-- ledger: NAME -->`` replaced: a paper's claims, or ``counts`` for the summary."""
    wanted = {"counts", *PAPERS}
    if set(MARKER.findall(page)) != wanted:
        raise InvalidInput(f"the ledger's page must ask for each of {', '.join(sorted(wanted))}")
    everything = list(claims(layout.pages / "claims.yaml").values())
    rows = judged()
    links = Links(layout, set(ERRATUM.findall((layout.pages / "errata.md").read_text(encoding="utf-8"))))

    def part(found: re.Match[str]) -> str:
        if found[1] == "counts":
            head, *lines = counts(everything, rows)
            narrow = [re.sub("(?<=[a-z])(?=[A-Z])", "\u00ad", name) for name in head]  # NewtonSummary breaks on a phone
            return list_table([narrow, *lines], "ledger-counts")
        return folded([c for c in everything if c.paper == found[1]], rows, links)

    return MARKER.sub(part, page)


def counts(everything: Sequence[Claim], rows: Rows) -> list[list[str]]:
    """Lines of a table: how many statements of each paper stand how, and how many of its figures are drawn."""
    papers = {paper: NAMES[paper] for paper in PAPERS}
    lines = [["", *papers.values(), "sum"]]
    for what, standings in STANDINGS.items():
        found = Counter((status(c, rows), c.paper) for c in everything if kind_of(c) == what)

        def line(name: str, words: Iterable[str], found: Counter[tuple[str, str]] = found) -> list[str]:
            numbers = [sum(found[word, paper] for word in words) for paper in papers]
            return [name, *(str(n or "–") for n in [*numbers, sum(numbers)])]

        lines.append([f"**{cell}**" for cell in line(what, standings)])
        lines += [line(word, [word]) for word in standings if any(found[word, paper] for paper in papers)]
    return lines


def kind_of(c: Claim) -> str:
    """Which of ``STANDINGS`` a claim has."""
    statements, drawings = STANDINGS
    return drawings if c.form else statements


def folded(some: Sequence[Claim], rows: Rows, links: Links) -> str:
    """One paper's claims, a folded table for each way in which some of them stand; its title says how many."""
    parts = []
    for what, standings in STANDINGS.items():
        for word in standings:
            mine = [c for c in some if kind_of(c) == what and status(c, rows) == word]
            if mine:
                noun = (what.removesuffix("s") if len(mine) == 1 else what) if what == "statements" else what
                title = f"{word}: {len(mine)} {noun}"
                parts += [f"::::{{dropdown}} {title}", table(mine, rows, links), "::::", ""]
    return "\n".join(parts)


def table(some: Sequence[Claim], rows: Rows, links: Links) -> str:
    """Claims: what is said where; what counts as reproduced, and what was changed in that; the verdict and its evidence."""
    lines = [["the paper says", "it counts as reproduced", "verdict and evidence"]]
    for c in some:
        evidence = ", ".join(links.evidence(c, entry) for entry in c.evidence)
        lines.append(
            [
                f"**[{c.id}]{{#{c.id}}}**, {links.text(c.where)}: {links.text(c.statement)}",
                "\n\n".join(criteria(c, links)),
                "\n\n".join(part for part in (verdict(c, rows, links), evidence) if part),
            ]
        )
    return list_table(lines, "ledger", widths=(32, 44, 24))


def criteria(c: Claim, links: Links) -> list[str]:
    """What counts as reproduced, at the other scales, and each change of it with its date and reason."""
    scales = [(name, text) for name, text in (("desk", c.desk), ("night", c.night)) if text]
    return [
        links.text(c.criterion),
        *(f"*At scale {name}:* {links.text(text)}" for name, text in scales),
        *(
            f"*{CHANGED[change.field]} changed on {change.date}, after {change.after}.* Before: {links.text(change.was)}. "
            f"Reason: {links.text(change.why)}."
            for change in c.changes
        ),
    ]


def verdict(c: Claim, rows: Rows, links: Links) -> str:
    """How a claim stands, with the tasks that say so, or the errata that a tested criterion names."""
    word = standing(c, rows)
    if word in TESTED and (errata := ERRATUM.findall(c.criterion)):
        return f"{word}, see {links.text(', '.join(dict.fromkeys(errata)))}"
    tasks = dict.fromkeys(task(row["task"]).title for row in rows if row["claim"] == c.id and row["task"])
    return word + f": {escaped(', '.join(tasks))}" * bool(tasks)


def standing(c: Claim, rows: Rows) -> str:
    """How a claim stands over all its cases, and at which scale that was seen."""
    mine = [row for row in rows if row["claim"] == c.id]
    if c.kind != "record" or not mine:
        return status(c, rows)
    scales = " and ".join(dict.fromkeys(row["scale"] for row in mine if row["scale"]))
    return f"{in_words([row['verdict'] for row in mine])}, {f'at scale {scales}' if scales else 'in the benchmark'}"


class Links:
    """Where the evidence and the errata are."""

    def __init__(self, layout: Layout, errata: set[str]) -> None:
        import yaml

        repository = yaml.safe_load((layout.root / "_config.yml").read_text(encoding="utf-8"))["repository"]
        self._files = f"{repository['url']}/blob/{repository['branch']}"
        self._chapters = set(layout.listed())
        self._errata = errata

    def evidence(self, c: Claim, entry: str) -> str:
        """A test's name leads to its file, an experiment to the chapter that shows it; a reason is text."""
        if c.kind == "test":
            file, _, name = entry.partition("::")
            words = name.removeprefix("test_").replace("_", " ")  # a name with underscores does not wrap
            return f"[test: {words}]({self._files}/{file})"
        if c.kind == "record":
            chapter = entry if entry in self._chapters else module(entry).CHAPTER
            return f"[{entry}](/notebooks/{chapter})" if chapter in self._chapters else f"`{entry}`"
        return self.text(entry)

    def text(self, plain: str) -> str:
        """Plain text as Markdown; an erratum that is on the errata page leads there."""
        return ERRATUM.sub(lambda e: f"[{e[0]}](errata.md)" if e[0] in self._errata else e[0], escaped(plain))


def escaped(text: str) -> str:
    r"""``text`` so that Markdown shows it as it is.

    >>> print(escaped("|a_k| < 2*b, b in {0, 1}"))
    \|a\_k\| \< 2\*b, b in \{0, 1\}
    """
    return re.sub(r"[\\`*_{}\[\]<>$|~#!^]", r"\\\g<0>", text)


def list_table(lines: Iterable[Sequence[str]], style: str, *, widths: Sequence[int] = ()) -> str:
    """A table in MyST Markdown from lines of cells, the first of which is the header."""
    options = [":header-rows: 1", f":class: {style}", *([f":widths: {' '.join(map(str, widths))}"] if widths else [])]
    indented = [[cell.replace("\n", "\n    ") for cell in cells] for cells in lines]  # what goes on belongs to the cell
    body = [("* - " if i == 0 else "  - ") + cell for cells in indented for i, cell in enumerate(cells)]
    return "\n".join([":::{list-table}", *options, *body, ":::"])
