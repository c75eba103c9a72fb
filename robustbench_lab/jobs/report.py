"""Write the report: one page, without any network, from the records there are; the same records and conf/ give the same bytes."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import DictConfig

from robustbench_lab.claims import claims_of
from robustbench_lab.config import CONF
from robustbench_lab.errors import LabError
from robustbench_lab.figures.charts import LINES, curves_chart, pairs_chart, reaches_chart
from robustbench_lab.figures.entries import Entry, Trained
from robustbench_lab.figures.of_tables import drawn
from robustbench_lab.figures.paper import files_of
from robustbench_lab.figures.pictures import Example, examples_of
from robustbench_lab.figures.sections import Section, flat
from robustbench_lab.grid import Table, chosen_tables, reshaped
from robustbench_lab.jobs.tables import filled
from robustbench_lab.overrides import parsed
from robustbench_lab.pages import PROFILES, bands, commands_of, origins, with_figures
from robustbench_lab.profiles import PROFILES as EVERY_PROFILE
from robustbench_lab.records import ERROR_FILE, EXAMPLES_FILE, RECORD_FILE, RUN_FILE, read_arrays, read_json, read_record, write_bytes

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
CLASSES = ("dataset", "backbone", "defense", "attack")  # groups whose choices are of several classes
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
GALLERY, PICTURES = 4, 4  # models of a table, and examples of each, that are shown


@dataclass(frozen=True)
class Drawing:
    """A chart and what is said under it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Adversarial examples of one model under one attack."""

    model: str
    entry: Entry
    examples: Sequence[Example]


@dataclass(frozen=True)
class Paper:
    key: str
    title: str
    sections: Sequence[Section]
    unmeasured: Sequence[Table]


class Shelf:
    """Every record and run under an output folder, and `problems`: the files that could not be read, with the reason."""

    def __init__(self, output_root: Path) -> None:
        self.root = output_root
        self.problems: dict[str, str] = {}
        self.entries: list[Entry] = []
        self.trained: dict[str, Trained] = {}
        for path in sorted((output_root / "runs").glob(f"*/evaluate/*/{RECORD_FILE}")):
            if (record := self._read(path, read_record)) is not None:
                try:
                    self.entries.append(Entry.of(path.parent, record))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    self._problem(path, f"is damaged ({error!r}); repeat the job with force=true")
        for path in sorted((output_root / "runs").glob(f"*/{RUN_FILE}")):
            if (record := self._read(path, read_json)) is not None:
                self.trained[path.parent.name.rpartition("-")[2]] = Trained.of(path.parent.name, record, self._epochs(path.parent))

    def of_runs(self) -> dict[str, list[Entry]]:
        """The records of each run that speak of the weights it has now."""
        found: dict[str, list[Entry]] = {}
        for entry in filter(self.is_current, self.entries):
            found.setdefault(entry.run, []).append(entry)
        return found

    def is_current(self, entry: Entry) -> bool:
        """Whether the runs that a record speaks of, the attacked and the attacker's, still have the weights that it speaks of."""
        parts = [part for part in (entry.record["run"], entry.record.get("source")) if part]
        return all(
            (trained := self.trained.get(part["fingerprint"])) is not None and trained.record.get("model_digest") == part["model_digest"]
            for part in parts
        )

    @cached_property
    def _classes(self) -> list[dict[str, str]]:
        """The classes behind each record and its run, by group, as far as these tell them."""
        found = set()
        for entry in self.entries:
            run = self.trained[entry.run].record["config"] or {} if entry.run in self.trained else {}
            config = {**run, **entry.record["config"]}
            found.add(tuple((group, config[group]["_target_"]) for group in CLASSES if "_target_" in (config.get(group) or ())))
        return [dict(classes) for classes in found]

    def may_fill(self, table: Table) -> bool:
        """Whether some record is of the classes that some cell's words choose: without one, the table need not be composed. The choices'
        names do not tell: two of them, with other words, may have the same content."""
        chosen = {frozenset(found for word in words if (found := class_of(word)) is not None) for _, _, words in table.words()}
        return any(all(known.get(group, name) == name for group, name in classes) for classes in chosen for known in self._classes)

    def failures(self) -> list[tuple[str, str]]:
        """Jobs that left an error and have not succeeded since: folder and error."""
        runs = self.root / "runs"
        paths = sorted([*runs.glob(f"*/{ERROR_FILE}"), *runs.glob(f"*/evaluate/*/{ERROR_FILE}")])
        contents = [(path, self._read(path, read_json)) for path in paths]
        return [(self._name(path.parent), str(content.get("error", "no message"))) for path, content in contents if content is not None]

    def galleries(self, section: Section) -> list[Gallery]:
        found = []
        for model, entry in section.strongest_rows(GALLERY):
            path = entry.folder / EXAMPLES_FILE
            if path.exists() and (arrays := self._read(path, read_arrays)) is not None:
                try:
                    examples = examples_of(arrays, entry.dataset, PICTURES)
                except LabError as error:
                    self._problem(path, f"is damaged: {error}; repeat the job with force=true")
                    continue
                if examples:
                    found.append(Gallery(model, entry, examples))
        return found

    def href(self, entry: Entry) -> str:
        """From the page to the record's file."""
        return quote(f"../{self._name(entry.folder / RECORD_FILE)}")

    def _epochs(self, folder: Path) -> list[dict[str, Any]]:
        path = folder / "metrics.jsonl"
        try:
            epochs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if not all(isinstance(epoch, dict) for epoch in epochs):
                raise ValueError("expected an object a line")
        except (OSError, ValueError) as error:
            self._problem(path, f"cannot be read ({error})")
            return []
        return epochs

    def _read(self, path: Path, read: Any) -> Any:
        try:
            return read(path)
        except LabError as error:
            self._problem(path, str(error).removeprefix(str(path)).strip())
            return None

    def _problem(self, path: Path, reason: str) -> None:
        self.problems[self._name(path)] = reason

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def main(cfg: DictConfig) -> None:
    print(write_report(Path(cfg.output_root).absolute(), cfg.tables))


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
    loader = PackageLoader("robustbench_lab", "templates")
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
        origins={section.anchor: origins(section.table, section.cells) for section in sections},
        entries=shelf.entries,
        failures=shelf.failures(),
        problems=shelf.problems,  # last: what was read above may have found some
        pictures=PICTURES,
    )


def papers_of(tables: Sequence[Table], shelf: Shelf) -> list[Paper]:
    """The papers that have tables, with every profile of a table that has a record; the paper's own profile first."""
    shapes = {(shape.name, shape.profile): shape for profile in EVERY_PROFILE for shape in (reshaped(table, profile) for table in tables)}
    every = filled([shape for shape in shapes.values() if shelf.may_fill(shape)], shelf.root)
    entries, by_paper = shelf.of_runs(), dict[str, tuple[list[Section], list[Table]]]()
    for table in tables:
        sections, unmeasured = by_paper.setdefault(table.name.partition("/")[0], ([], []))
        own = [(shape, cells) for shape, cells in every if shape.name == table.name and any(cell.record for cell in cells)]
        for shape, cells in own:
            commands = {cell.name: commands_of(cell) for cell in cells if cell.missing}
            sections.append(Section(shape, cells, claims_of(shape, cells), entries, shelf.trained, commands))
        if not own:
            unmeasured.append(table)
    names = {**PAPERS, **{key: key.replace("_", " ") for key in sorted(by_paper.keys() - NO_PAPERS.keys() - PAPERS.keys())}, **NO_PAPERS}
    return [Paper(key, title, *by_paper[key]) for key, title in names.items() if key in by_paper]


@cache
def class_of(word: str) -> tuple[str, str] | None:
    """Group and class of a word that chooses one: the class that its file names, or the file that this one inherits from."""
    override = parsed(word)
    group = override.key_or_group
    if group not in CLASSES or override.package is not None:
        return None
    path = CONF / group / f"{override.value()}.yaml"
    if not path.exists():  # who composes the table says so better
        return None
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "_target_" in content:
        return group, content["_target_"]
    return class_of(f"{group}={next(base for base in content['defaults'] if isinstance(base, str) and base != '_self_')}")


def caption_of(section: Section) -> str:
    """What the cells of a table's grid hold."""
    table, sizes = section.table, section.sizes
    told = "Ours with its 95 % interval" + (f", n = {sizes[0]:,} test images" if len(sizes) == 1 else " and n, the number of test images")
    if table.averages:
        told += "; where the figure is no percentage, n is of those that count"
    if section.compares:
        difference = "the difference in points" if all(table.in_percent) else "the difference"
        judged = f"{difference}, and whether it is within the band, {bands(table)}" if section.judged else difference
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
        found.append(Drawing(Markup(reaches_chart(f"{section.anchor}-reach", f"{name}: {title}", reaches)), about))
    if section.pairs:
        of_cells, pairs = {band for band, _ in section.pairs}, [pair for _, pair in section.pairs]
        band = min(of_cells) if len(of_cells) == 1 else None
        within = "their column's band" if band is None else f"the band of {band:g} points"
        about = f"Ours against the published figures, in percent. Circles: within {within}; squares: outside. Bars: 95 % intervals."
        found.append(Drawing(Markup(pairs_chart(f"{section.anchor}-pairs", f"Ours and published: {title}", pairs, band)), about))
    measure, curves = section.curves()
    if curves:
        some = f" The first {LINES} of {len(curves)} runs." if len(curves) > LINES else ""
        about = f"{measure.partition(',')[0].capitalize()} by epoch.{some}"
        found.append(Drawing(Markup(curves_chart(f"{section.anchor}-curves", f"Training: {title}", measure, curves)), about))
    return found


def prose_of(section: Section) -> dict[str, list[str]]:
    """Deviations and findings with their figures put in; both speak of the real settings, not of those of a smaller profile."""
    if section.table.reshaped:
        return {}
    parts = {"Where we differ from the paper": section.table.deviations, "Findings": section.table.findings}
    return {name: [" ".join(with_figures(entry, section.cells).split()) for entry in entries] for name, entries in parts.items() if entries}


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
