"""Write the report: one page, without any network, from the records there are; the same records and conf/ give the same bytes."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import drawn
from robustbench_lab.figures.paper import files_of
from robustbench_lab.report.charts import LINES, curves_chart, pairs_chart, reaches_chart
from robustbench_lab.report.sections import Section, flat
from robustbench_lab.report.shelf import PICTURES, Shelf
from robustbench_lab.storage.files import write_bytes
from robustbench_lab.tables.cells import filled
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.profiles import PROFILES
from robustbench_lab.tables.reading import chosen_tables, reshaped
from robustbench_lab.tables.view import view_of

log = logging.getLogger("robustbench_lab")

REPORT = Path("report") / "index.html"
PAPERS = {  # in the page's order; others follow by name
    "fm": "Feature Matching",
    "sfm": "Sparse Feature Masker",
    "attention_logit_pairing": "Attention and Adversarial Logit Pairing",
    "deep_defense": "Deep Defense",
    "efficient_defenses": "Efficient Defenses",
}

NO_PAPERS = {"quick": "Short recipes (no paper)", "smoke": "Smoke (no paper)"}
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Drawing:
    """A chart and what is said under it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Paper:
    key: str
    title: str
    sections: Sequence[Section]
    unmeasured: Sequence[Table]


def write_report(output_root: Path, patterns: str | Sequence[str] = ()) -> Path:
    """Write the page and return its path; `patterns` choose tables as in chosen_tables, the list of all records is whole in any case."""
    path = output_root / REPORT
    write_bytes(path, page(chosen_tables(patterns), Shelf(output_root)).encode())
    log.info("written: %s", path)
    return path


def page(tables: Sequence[Table], shelf: Shelf) -> str:
    """The page as HTML."""
    papers = papers_of(tables, shelf)
    sections = [section for paper in papers for section in paper.sections]
    loader = PackageLoader("robustbench_lab.report", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(figure=figure, caption=caption_of, href=shelf.href, flat=flat, sole=sole, versions=versions, commit=commit)
    source = {name: Markup(loader.get_source(environment, f"report.{name}")[0]) for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(
        **source,
        papers=papers,
        sections=sections,
        profiles={name: sentence.removeprefix(f"{name.upper()}: ") for name, sentence in PROFILES.items()},
        drawings={section.anchor: drawings_of(section) for section in sections},
        figures={section.anchor: figure_of(section, shelf) for section in sections},
        galleries={section.anchor: shelf.galleries(section) for section in sections},
        prose={section.anchor: prose_of(section) for section in sections},
        origins={section.anchor: section.view.origins for section in sections},
        entries=shelf.entries,
        failures=shelf.failures(),
        problems=shelf.problems,  # last: what was read above may have found some
        pictures=PICTURES,
    )


def papers_of(tables: Sequence[Table], shelf: Shelf) -> list[Paper]:
    """The papers that have tables, with every profile of a table that has a record; the paper's own profile first."""
    shapes = {(shape.name, shape.profile): shape for profile in PROFILES for shape in (reshaped(table, profile) for table in tables)}
    every = filled([shape for shape in shapes.values() if shelf.may_fill(shape)], shelf.root)
    entries, by_paper = shelf.of_runs(), dict[str, tuple[list[Section], list[Table]]]()
    for table in tables:
        sections, unmeasured = by_paper.setdefault(table.name.partition("/")[0], ([], []))
        own = [(shape, cells) for shape, cells in every if shape.name == table.name and any(cell.record for cell in cells)]
        for shape, cells in own:
            sections.append(Section(shape, cells, view_of(shape, cells, shelf.root), entries, shelf.trained))
        if not own:
            unmeasured.append(table)
    names = {**PAPERS, **{key: key.replace("_", " ") for key in sorted(by_paper.keys() - NO_PAPERS.keys() - PAPERS.keys())}, **NO_PAPERS}
    return [Paper(key, title, *by_paper[key]) for key, title in names.items() if key in by_paper]


def caption_of(section: Section) -> str:
    """What the cells of a table's grid hold."""
    table, sizes = section.table, section.sizes
    told = "Ours with its 95 % interval" + (f", n = {sizes[0]:,} test images" if len(sizes) == 1 else " and n, the number of test images")
    if table.averages:
        told += "; where the figure is no percentage, n is of those that count"
    if section.compares:
        difference = "the difference in points" if all(table.in_percent) else "the difference"
        judged = f"{difference}, and whether it is within the band, {section.view.bands}" if section.judged else difference
        told += f"; the published figure ({table.published['source']}), {judged}"
    if any(cell.std is not None for cell in section.cells):
        told += "; ± is the sample standard deviation over the runs of one attack"
    return f"{told}."


def figure_of(section: Section, shelf: Shelf) -> str | None:
    """The paper's figure as a data URI, for a table that is drawn as one."""
    try:
        found = drawn(section.table, section.cells, shelf.root)
    except LabError as error:
        shelf.problems[f"figure of {section.table.name}"] = str(error)
        return None
    return None if found is None else "data:image/png;base64," + base64.b64encode(files_of(found)[0]).decode()


def drawings_of(section: Section) -> list[Drawing]:
    """The table's charts; each only where there is something to draw."""
    found, title = [], section.table.title
    if reaches := section.reaches():
        claimed = any(reach.claimed is not None for reach in reaches)
        name = "Claimed and strongest" if claimed else "Strongest attack"
        about = (
            f"{name}: {'the paper, ours' if claimed else 'ours'} under the attack that hits hardest in the "
            f"{'paper' if claimed else 'table'}, and ours under the strongest attack among all records of the same model and ball in "
            f"which the attacker sees everything.{section.means} Bars: 95 % intervals."
        )
        found.append(Drawing(reaches_chart(f"{section.anchor}-reach", f"{name}: {title}", reaches), about))
    if section.pairs:
        of_cells, pairs = {band for band, _ in section.pairs}, [pair for _, pair in section.pairs]
        band = min(of_cells) if len(of_cells) == 1 else None
        within = "their column's band" if band is None else f"the band of {band:g} points"
        about = f"Ours against the published figures, in percent. Circles: within {within}; squares: outside. Bars: 95 % intervals."
        found.append(Drawing(pairs_chart(f"{section.anchor}-pairs", f"Ours and published: {title}", pairs, band), about))
    measure, curves = section.curves()
    if curves:
        some = f" The first {LINES} of {len(curves)} runs." if len(curves) > LINES else ""
        about = f"{measure.partition(',')[0].capitalize()} by epoch.{some}"
        found.append(Drawing(curves_chart(f"{section.anchor}-curves", f"Training: {title}", measure, curves), about))
    return found


def prose_of(section: Section) -> dict[str, Sequence[str]]:
    """Deviations and findings with their figures put in."""
    parts = {"Where we differ from the paper": section.view.deviations, "Findings": section.view.findings}
    return {name: entries for name, entries in parts.items() if entries}


def figure(value: float | str | None, form: str = ".2f", std: float | None = None) -> str:
    """A number as the page shows it, with its standard deviation where it is a mean over runs; a dash for none, and words as they are (a
    record has "nan" for what is no number)."""
    if not isinstance(value, int | float):
        return value or DASH
    return format(value, form).replace("-", MINUS) + ("" if std is None else f" ± {std:{form}}")


def commit(name: str | None) -> str:
    """A commit's first digits, and whether there were changes on top of it."""
    return DASH if name is None else name.partition("+")[0][:12] + ("+changes" if "+" in name else "")


def sole(values: Iterable[object]) -> str:
    """The distinct values in order, as text; a dash for what is unknown."""
    return ", ".join(sorted({DASH if value is None else str(value) for value in values})) or DASH


def versions(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({f"{package} {number}" for record in records for package, number in (record["versions"] or {}).items() if number})
