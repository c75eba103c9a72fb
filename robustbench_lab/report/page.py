"""Write the report: one page and its pictures, without any network, from the records there are; the same records and conf/ give the same
bytes. The project's own results may stand beside the user's, marked as such.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustbench_lab.errors import LabError
from robustbench_lab.report.charts import LINES, curves_chart, pairs_chart, reaches_chart
from robustbench_lab.report.entries import Entry
from robustbench_lab.report.headlines import Headline, headline_of, in_one_ball
from robustbench_lab.report.pictures import Album, Picture, figure_of
from robustbench_lab.report.sections import Section, flat
from robustbench_lab.report.shelf import PICTURES, Gallery, Shelf
from robustbench_lab.storage.files import write_text
from robustbench_lab.tables.cells import filled_from
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.profiles import PROFILES
from robustbench_lab.tables.reading import chosen_tables, reshaped
from robustbench_lab.tables.smaller import StandIns, stand_ins
from robustbench_lab.tables.view import command_of, view_of

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
class Article:
    """A section with what is drawn of it."""

    section: Section
    headline: Headline
    drawings: Sequence[Drawing]
    picture: Picture | None
    galleries: Sequence[Gallery]


@dataclass(frozen=True)
class Paper:
    key: str
    title: str
    articles: Sequence[Article]
    unmeasured: Sequence[tuple[Table, StandIns | None]]  # with what is known of it at a smaller size


def write_report(output_root: Path, patterns: str | Sequence[str] = (), reference: Path | None = None) -> Path:
    """Write the page and return its path.

    patterns: tables, as in chosen_tables; the list of all records is whole in any case. reference: an output folder with the project's own
    results, which are shown beside those of `output_root`.
    """
    path = output_root / REPORT
    shelves = [Shelf(output_root)]
    if reference is not None and reference.is_dir() and reference.resolve() != output_root.resolve():
        shelves.append(Shelf(reference, of_the_project=True))
    album = Album(path.parent)
    write_text(path, page(chosen_tables(patterns), shelves, album))
    album.take_away_others()
    log.info("written: %s", path)
    return path


def page(tables: Sequence[Table], shelves: Sequence[Shelf], album: Album) -> str:
    """The page as HTML; its pictures are put into the album."""
    papers = papers_of(tables, shelves, album)
    sweeps = [article for shelf in shelves for article in shelf.sweeps()]
    loader = PackageLoader("robustbench_lab.report", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        figure=figure,
        minus=minus,
        breakable=breakable,
        caption=caption_of,
        flat=flat,
        sole=sole,
        versions=versions,
        commit=commit,
        common=common,
        command_of=command_of,
    )
    environment.filters["href"] = lambda entry: href(entry, album.folder.parent)
    source = {name: Markup(loader.get_source(environment, f"report.{name}")[0]) for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(
        **source,
        papers=papers,
        sweeps=sweeps,
        foreign=[model for shelf in shelves for model in shelf.imported()],
        articles=[article for paper in papers for article in paper.articles],
        shelves=shelves,
        shown={entry.folder.path for paper in papers for article in paper.articles for entry, _ in article.section.distinct},
        profiles={name: sentence.removeprefix(f"{name.upper()}: ") for name, sentence in PROFILES.items()},
        failures=[failure for shelf in shelves for failure in shelf.failures()],
        problems={name: reason for shelf in shelves for name, reason in shelf.problems.items()},  # what was read above may have found some
        pictures=PICTURES,
    )


def papers_of(tables: Sequence[Table], shelves: Sequence[Shelf], album: Album) -> list[Paper]:
    """The papers that have tables, with every profile of a table that has a record; the paper's own profile first, the user's own first.
    Of a table that has none it is told what is known at a smaller size."""
    shapes = {(shape.name, shape.profile): shape for profile in PROFILES for shape in (reshaped(table, profile) for table in tables)}
    wanted = [shape for shape in shapes.values() if shape.smaller or any(shelf.may_fill(shape) for shelf in shelves)]
    found: dict[str, list[Article]] = {}
    known: dict[str, StandIns] = {}
    for shelf, every in zip(shelves, filled_from(wanted, [shelf.root for shelf in shelves]), strict=True):
        entries = shelf.of_runs()
        for shape, cells in every:
            if any(cell.record for cell in cells):
                view = view_of(shape, cells, shelf.root)
                section = Section(shape, cells, view, entries, shelf.trained, shelf.of_the_project)
                found.setdefault(shape.name, []).append(article_of(section, shelf, album))
            elif shape.name not in known and (smaller := stand_ins(shape, cells, shelf.root)):
                known[shape.name] = smaller
    by_paper: dict[str, tuple[list[Article], list[tuple[Table, StandIns | None]]]] = {}
    for table in tables:
        articles, unmeasured = by_paper.setdefault(table.name.partition("/")[0], ([], []))
        articles += found.get(table.name, [])
        if table.name not in found:
            unmeasured.append((table, known.get(table.name)))
    names = {**PAPERS, **{key: key.replace("_", " ") for key in sorted(by_paper.keys() - NO_PAPERS.keys() - PAPERS.keys())}, **NO_PAPERS}
    return [Paper(key, title, *by_paper[key]) for key, title in names.items() if key in by_paper]


def article_of(section: Section, shelf: Shelf, album: Album) -> Article:
    try:
        picture = figure_of(section.table, section.cells, shelf.root, album)
    except LabError as error:
        shelf.problems[f"figure of {section.table.name}"] = str(error)
        picture = None
    return Article(section, headline_of(section), drawings_of(section), picture, shelf.galleries(section, album))


def href(entry: Entry, page_folder: Path) -> str:
    """From the page to the record's file."""
    return quote(Path(os.path.relpath(entry.folder.file, page_folder)).as_posix())


def caption_of(section: Section) -> str:
    """What the cells of a table's grid hold."""
    table, sizes = section.table, section.view.sizes
    told = "Ours with its 95 % interval" + (f", n = {sizes[0]:,} test images" if len(sizes) == 1 else " and n, the number of test images")
    if section.view.averages:
        told += "; where the figure is no percentage, n is of those that count"
    if section.view.compares:
        difference = "the difference in points" if all(metric.in_percent for metric in table.metrics) else "the difference"
        judged = f"{difference}, and whether it is within the band, {section.view.bands}" if section.judged else difference
        told += f"; the published figure ({table.published['source']}), {judged}"
    if any(cell.std is not None and not cell.seeds for cell in section.cells):
        told += "; ± is the sample standard deviation over the runs of one attack"
    if section.view.seeds:
        told += "; of several training seeds their mean ± the sample standard deviation over them, with Student's interval of that mean"
    return f"{told}."


def drawings_of(section: Section) -> list[Drawing]:
    """The table's charts; each only where there is something to draw."""
    found, title = [], section.table.title
    if compared := in_one_ball(section):
        reaches = [comparison.reach() for comparison in compared]
        where = "" if len(compared) == len(section.comparisons) else f", {compared[0].ball}"
        claimed = any(reach.claimed is not None for reach in reaches)
        name = "Claimed and strongest" if claimed else "Strongest attack"
        about = (
            f"{name}{where}: {'the paper, ours' if claimed else 'ours'} under the attack that hits hardest in the "
            f"{'paper' if claimed else 'table'}, and ours under the strongest attack among all records of the same model and ball in "
            f"which the attacker sees everything.{section.means} Bars: 95 % intervals."
        )
        found.append(Drawing(reaches_chart(f"{section.anchor}-reach", f"{name}{where}: {title}", reaches), about))
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


def figure(value: float | str | None, form: str = ".2f", std: float | None = None) -> str:
    """A number as the page shows it, with its standard deviation where it is a mean over runs; a dash for none, and words as they are (a
    record has "nan" for what is no number)."""
    if not isinstance(value, int | float):
        return value or DASH
    return format(value, form).replace("-", MINUS) + ("" if std is None else f" ± {std:{form}}")


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after an underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def minus(text: str | None) -> str:
    """A figure that is text already."""
    return DASH if text is None else text.replace("-", MINUS)


def commit(name: str | None) -> str:
    """A commit's first digits, and whether there were changes on top of it."""
    return DASH if name is None else name.partition("+")[0][:12] + ("+changes" if "+" in name else "")


def sole(values: Iterable[object]) -> str:
    """The distinct values in order, as text; a dash for what is unknown."""
    return ", ".join(sorted({DASH if value is None else str(value) for value in values})) or DASH


def common(texts: Iterable[Sequence[str]]) -> set[str]:
    """The lines that all of several texts have; none where there is one text."""
    found = [set(text) for text in texts]
    return set.intersection(*found) if len(found) > 1 else set()


def versions(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({f"{package} {number}" for record in records for package, number in (record["versions"] or {}).items() if number})
