"""The ledger of claims: tables made from ``book/claims.yaml`` and the published records, where the page asks for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from reprolib.book.layout import Layout
from reprolib.errors import InvalidInput
from reprolib.experiments import module, verdicts_of
from reprolib.records.claims import FINDINGS, HOLDS, OPEN, PAPERS, Claim, claims, status
from reprolib.records.record import SCALES, Record, published
from reprolib.records.verdict import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, PARTLY, REPRODUCED
from reprolib.tasks import task

MARKER = re.compile(r"^<!-- ledger: (\S+) -->$", re.MULTILINE)
ERRATUM = re.compile(r"\bE-[a-z]+-\d+\b")
NAMES = dict(zip(PAPERS, ("RED", "NewtonSummary", "ADLER", "CurveBall", "CSDD", "all five"), strict=True))
TESTED = (HOLDS, *FINDINGS.values())
STATUSES = (*TESTED, REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE, OPEN)


def filled(page: str, layout: Layout) -> str:
    """``page`` with every marker ``<!-- ledger: NAME -->`` replaced: a paper's table, or ``counts`` for the summary."""
    wanted = {"counts", *PAPERS}
    if set(MARKER.findall(page)) != wanted:
        raise InvalidInput(f"the ledger's page must ask for each of {', '.join(sorted(wanted))}")
    everything = list(claims(layout.pages / "claims.yaml").values())
    rows = judged()
    errata = set(ERRATUM.findall((layout.pages / "errata.md").read_text(encoding="utf-8")))

    def part(found: re.Match[str]) -> str:
        if found[1] == "counts":
            return counts(everything, rows)
        return table([c for c in everything if c.paper == found[1]], rows, Links(layout, errata))

    return MARKER.sub(part, page)


def judged() -> list[dict[str, str]]:
    """What the best record of each experiment says of the claims, each row with the ``scale`` of its record."""
    best = {name: scale for name, scale in sorted(published(), key=lambda item: SCALES.index(item[1]))}
    records = [Record.load(name, scale) for name, scale in sorted(best.items())]
    return [row | {"scale": record.scale} for record in records for row in verdicts_of(record)]


def counts(everything: Sequence[Claim], rows: Sequence[dict[str, str]]) -> str:
    """A table: how many claims of each paper stand how."""
    of = {paper: Counter(status(c, rows) for c in everything if c.paper == paper) for paper in PAPERS}
    total: Counter[str] = sum(of.values(), Counter())
    shown = [s for s in STATUSES if total[s]]
    lines = [["", "claims", *shown]]
    for name, found in [*((NAMES[paper], found) for paper, found in of.items()), ("together", total)]:
        lines.append([name, str(found.total()), *(str(found[s] or "–") for s in shown)])
    return list_table(lines, "ledger-counts")


def table(some: Sequence[Claim], rows: Sequence[dict[str, str]], links: Links) -> str:
    """One paper's claims: what is said where, what counts as reproduced, what there is of it, and the verdict."""
    lines = [["id", "where", "statement", "criterion", "evidence", "verdict"]]
    for c in some:
        desk = f"; *at desk scale:* {links.text(c.desk)}" if c.desk else ""
        lines.append(
            [
                f"[{c.id}]{{#{c.id}}}",
                links.text(c.where),
                links.text(c.statement),
                links.text(c.criterion) + desk,
                ", ".join(links.evidence(c, entry) for entry in c.evidence) or "–",
                verdict(c, rows, links),
            ]
        )
    return list_table(lines, "ledger", widths=(11, 14, 21, 23, 16, 15))


def verdict(c: Claim, rows: Sequence[dict[str, str]], links: Links) -> str:
    """How a claim stands, with the scale and the tasks that say so, or the errata that a tested criterion names."""
    word = status(c, rows)
    if word in TESTED and (errata := ERRATUM.findall(c.criterion)):
        return f"{word}, see {links.text(', '.join(errata))}"
    mine = [row for row in rows if row["claim"] == c.id]
    if c.kind != "record" or not mine:
        return word
    tasks = ", ".join(dict.fromkeys(task(row["task"]).title for row in mine))
    return f"{word} at {' and '.join(dict.fromkeys(row['scale'] for row in mine))} scale ({escaped(tasks)})"


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
            chapter = module(entry).CHAPTER
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
    body = [("* - " if i == 0 else "  - ") + cell for cells in lines for i, cell in enumerate(cells)]
    return "\n".join([":::{list-table}", *options, *body, ":::"])
