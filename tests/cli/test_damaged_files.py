"""Whatever stands in a file, each verb ends well or in an error that names it, shows what else there is, and makes anew what it can."""

import copy
import io
import json
import logging
import os
import shutil
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, get_origin, get_type_hints

import numpy as np
import pytest
from omegaconf import DictConfig

from robustbench_lab.errors import LabError
from robustbench_lab.jobs import evaluate, tables
from robustbench_lab.report.page import write_report
from robustbench_lab.settings.conf import compose, place_of
from robustbench_lab.settings.identity import Evaluation, evaluation_of
from robustbench_lab.storage import records
from robustbench_lab.storage.files import write_arrays
from robustbench_lab.storage.folders import OutputFolder
from robustbench_lab.storage.made import Made, content_of
from robustbench_lab.storage.weights import metadata
from robustbench_lab.tables.cells import filled
from robustbench_lab.tables.planning import plan_of
from robustbench_lab.tables.reading import chosen_tables
from robustbench_lab.training.making import make_run

REMOVED = object()
DEEP = "[" * 100_000 + "]" * 100_000
VALUES: list[Any] = [REMOVED, None, 3, "x", [1], {}, 1e308, 10**400, -1, True, "inf", "\ud800", [[[[]]]]]
TEXTS = [
    b"",
    b"{",
    b"[]",
    b"3",
    b"null",
    b'{"schema": 1}',
    b"\xff\xfe\x00",
    DEEP.encode(),
    b'{"schema": ' + DEEP.encode() + b"}",
    b"\x00" * 64,
]


@dataclass(frozen=True)
class Folder:
    """An output folder with everything that a verb reads, and what the verbs are asked for."""

    outputs: Path
    cfg: DictConfig
    evaluation: Evaluation

    @property
    def run(self) -> Path:
        return self.evaluation.run.at(self.outputs).path

    @property
    def files(self) -> dict[str, Path]:
        record = next(self.run.glob("evaluate/*/record.json")).parent
        panel = next((self.run / "panel").glob("*.json"))
        names = ("run.json", "metrics.jsonl", "model.safetensors", ".hydra/config.yaml")
        kept = {name: record / name for name in ("record.json", "outcome.npz", "examples.npz")}
        return {**{name: self.run / name for name in names}, **kept, "panel": panel, "error.json": record / "error.json"}

    def verbs(self) -> dict[str, Callable[[], object]]:
        def page() -> None:
            write_report(self.outputs, ["paper/small"])

        def planned() -> None:
            content_of(self.outputs, [])
            Made(self.outputs, "x").unchanged("tables/paper/small")
            both = filled(chosen_tables(["paper/small"]), self.outputs)
            list(plan_of((cell for _, cells in both for cell in cells), self.outputs).lines({}))

        return {
            "report": page,
            "tables": partial(
                tables.main, DictConfig({"output_root": str(self.outputs), "tables": ["paper/small"], "table_profile": "paper"})
            ),
            "plan": planned,
            "train": lambda: make_run(self.evaluation.run, place_of(self.cfg)),
            "evaluate": partial(evaluate.job, self.cfg, self.evaluation),
        }


PANEL = [
    "panel=default", "panel.images=5", "panel.queries.queries=5", "panel.random.draws=2", "panel.longer.steps=2", "panel.iterated.steps=2",
    "panel.margin.steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Iterator[Folder]:
    """A run, an evaluation of it with a panel, a table and a report, as the verbs leave them; the other evaluation is in a pack."""
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTBENCH_LAB_TABLES", str(outputs.parent / "table"))
        words = [*tiny, "attack=fgsm", *PANEL, f"output_root={outputs}"]
        table = {
            "title": "Small", "source": "none", "profile": "smoke", "corner": "defense", "metric": "robust_accuracy",
            "overrides": [word for word in tiny if not word.startswith("device")] + ["attack=fgsm"],
            "rows": [{"label": "plain"}], "columns": [{"label": "FGSM"}, {"label": "weak", "overrides": ["budget.eps=0.01"]}],
        }  # fmt: skip
        (outputs.parent / "table" / "paper").mkdir(parents=True)
        (outputs.parent / "table" / "paper" / "small.yaml").write_text(json.dumps(table))
        cfg, choices = compose("evaluate", words)
        folder = Folder(outputs, cfg, evaluation_of(cfg, choices, words[:-1]))
        for verb in ("train", "evaluate"):
            folder.verbs()[verb]()
        weak = [*words, "budget.eps=0.01", "panel=none"]
        evaluate.job(compose("evaluate", weak)[0], evaluation_of(*compose("evaluate", weak), weak))
        run = folder.evaluation.run.at(outputs)
        other = next(one for one in run.evaluations() if one.name != folder.evaluation.name)
        run.pack.add({other.name: (other.read(), {"outcome.npz": other.arrays("outcome.npz") or {}})})
        shutil.rmtree(other.path)
        (folder.run / "evaluate" / folder.evaluation.name / "error.json").write_text('{"schema": 1, "error": "an old one"}')
        for verb in ("report", "tables"):
            folder.verbs()[verb]()
        yield folder


@pytest.fixture
def copied(made: Folder, tmp_path: Path) -> Folder:
    """A copy of it that a test may damage."""
    return copy_of(made, tmp_path)


def copy_of(made: Folder, place: Path) -> Folder:
    shutil.copytree(made.outputs, place / "outputs")
    cfg = copy.deepcopy(made.cfg)
    cfg.output_root = str(place / "outputs")
    return Folder(place / "outputs", cfg, made.evaluation)


def ends(folder: Folder, *verbs: str) -> dict[str, str]:
    """How each verb ended: "" or the words of its error; anything but a LabError is a failure of the test."""
    found = {}
    for name in verbs or folder.verbs():
        try:
            folder.verbs()[name]()
            found[name] = ""
        except LabError as error:
            found[name] = str(error)
    return found


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of a content, and the first entry of every list."""
    entries = content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is not REMOVED:
        inner[path[-1]] = value
    elif isinstance(inner, list):
        inner.pop(path[-1])
    else:
        del inner[path[-1]]
    return content


def damaged(folder: Folder, name: str, *path: Any, value: Any) -> Path:
    """Write another value into one of the files of JSON, and return the file."""
    file = folder.files[name]
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    return file


def shown(folder: Folder) -> str:
    """The table's page."""
    return (folder.outputs / "tables" / "paper" / "small.md").read_text()


def figures(folder: Folder) -> list[str]:
    """Those of the table's only row."""
    row = next(line for line in shown(folder).splitlines() if line.startswith("| plain"))
    return [figure.strip() for figure in row.split("|")[2:4]]


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("run.json", ["config"], [1]),
        ("run.json", ["seconds"], "x"),
        ("run.json", ["versions"], 3),
        ("run.json", ["epochs"], 10**300),
        ("run.json", ["config", "dataset", "train_size"], [1]),
        ("record.json", ["warnings"], None),
        ("record.json", ["warnings"], [{"code": 3}]),
        ("record.json", ["versions"], 3),
        ("record.json", ["seconds"], "inf"),
        ("record.json", ["panel"], 3),
        ("record.json", ["source"], "x"),
        ("record.json", ["run", "choices"], REMOVED),
        ("record.json", ["config", "budget", "eps"], {}),
        ("record.json", ["choices", "attack"], "\ud800"),
        ("record.json", ["run", "seed"], 10**400),
    ],
)
def test_a_value_of_another_form_makes_its_file_a_missing_one(copied, caplog, name, path, value):
    file = damaged(copied, name, *path, value=value)
    ended = ends(copied, "report", "tables", "plan")
    assert set(ended.values()) == {""}
    assert f"counts as missing: {file}" in caplog.text
    page = (copied.outputs / "report" / "index.html").read_text()
    assert f"<code>{file.relative_to(copied.outputs)}</code>" in page
    assert str(file) in shown(copied)
    assert ends(copied, "train", "evaluate", "tables") == {"train": "", "evaluate": "", "tables": ""}
    assert "skipped for" not in shown(copied), "it is made again"
    if name == "record.json":
        assert "-" not in figures(copied)


@pytest.mark.parametrize(("name", "form"), [("run.json", "RunContent"), ("record.json", "RecordContent")])
def test_what_a_file_may_leave_unsaid_is_shown_without(copied, name, form):
    """As those from before a key was told."""
    form = getattr(records, form)
    optional = [key for key, hint in get_type_hints(form, include_extras=True).items() if get_origin(hint) is NotRequired]
    assert "seconds" in optional
    content = json.loads(copied.files[name].read_text())
    copied.files[name].write_text(json.dumps({key: entry for key, entry in content.items() if key not in optional}))
    assert ends(copied, "report", "tables", "plan") == {"report": "", "tables": "", "plan": ""}
    assert "skipped for" not in shown(copied)


def test_the_other_evaluations_of_a_run_are_shown(copied):
    damaged(copied, "record.json", "warnings", value=None)
    before = figures(copied)
    assert ends(copied, "tables") == {"tables": ""}
    assert figures(copied) == ["-", before[1]]


@pytest.mark.parametrize(
    "lines",
    [
        ['{"epoch": 1, "loss_model": 1e308}', '{"epoch": 2, "loss_model": -1e308}'],
        ['{"epoch": 1, "loss_model": %s}' % ("1" * 400)],
        ['{"epoch": "x", "loss_model": 1}'],
        ['{"loss_model": 1}'],
        ["[1]"],
        [DEEP],
        ['{"epoch": 1, "seconds": "inf"}', '{"epoch": 2, "seconds": [1]}'],
    ],
)
def test_epochs_of_another_form_are_left_out(copied, caplog, lines):
    path = copied.files["metrics.jsonl"]
    path.write_text("\n".join(lines) + "\n")
    ended = ends(copied, "report", "tables", "plan", "train", "evaluate")
    assert set(ended.values()) == {""}
    assert str(path) in caplog.text
    assert "metrics.jsonl" in (copied.outputs / "report" / "index.html").read_text()
    assert "skipped for" not in shown(copied)


def test_a_damaged_line_of_a_pack_leaves_the_others(copied, caplog):
    path = copied.run / "evaluations.jsonl"
    path.write_text(DEEP + "\n" + path.read_text() + '{"name": "x", "record": 3}\n')
    ended = ends(copied)
    assert set(ended.values()) == {""}
    assert f"{path}:1 is damaged" in caplog.text
    assert "evaluations.jsonl" in (copied.outputs / "report" / "index.html").read_text()
    assert "-" not in figures(copied)


def huge_claim(path: Path) -> None:
    """An archive of one array that says that it has 745 GiB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**11,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("index.npy", header.getvalue() + b"\0" * 64)


ARRAYS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "745 GiB": huge_claim,
    "lacks an array": lambda path: write_arrays(path, x=np.zeros(3)),
    "other lengths": lambda path: write_arrays(path, **{name: array[:1] for name, array in np.load(path, allow_pickle=False).items()}),
    "other types": lambda path: write_arrays(
        path, **{name: array.astype("U3") for name, array in np.load(path, allow_pickle=False).items()}
    ),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [*(("outcome.npz", how) for how in ARRAYS), *(("examples.npz", how) for how in ("truncated", "lacks an array", "gone"))],
)
def test_arrays_that_cannot_be_read_are_made_again(copied, name, how):
    """Examples that are gone are no reason: they may be taken away."""
    path = copied.files[name]
    whole = {key: array.copy() for key, array in np.load(path, allow_pickle=False).items()}
    ARRAYS[how](path)
    ended = ends(copied)
    assert set(ended.values()) == {""}
    if name == "outcome.npz" or how not in ("gone", "other lengths"):
        again = np.load(path, allow_pickle=False)
        assert again.files == list(whole)
        for key, array in whole.items():
            np.testing.assert_array_equal(again[key], array)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((name, "folder") for name in ("run.json", "record.json", "metrics.jsonl", "model.safetensors", "outcome.npz", "panel")),
        ("run.json", "pipe"), ("metrics.jsonl", "pipe"), ("record.json", "large"), ("outcome.npz", "large"),
    ],
)  # fmt: skip
def test_something_that_is_no_file_of_ours_is_named_and_nothing_waits_for_it(copied, name, what):
    path = copied.files[name]
    path.unlink()
    if what == "large":
        with path.open("wb") as file:
            file.truncate(2**42)  # of nothing: it takes no room
    else:
        (path.mkdir if what == "folder" else partial(os.mkfifo, path))()
    ended = ends(copied)
    assert [ended[verb] for verb in ("report", "tables", "plan")] == [""] * 3
    for verb in ("train", "evaluate"):
        assert not ended[verb] or str(path) in ended[verb] or "no finished run" in ended[verb]
    assert path.is_file() or any(str(path) in error for error in ended.values()) or name in ("metrics.jsonl", "examples.npz", "panel")


# Finished is what can be used


@pytest.mark.parametrize("how", ["truncated", "empty", "a flipped bit", "of another run", "metadata that is a list", "a header of 4 GiB"])
def test_weights_that_evaluate_cannot_use_are_no_finished_run(copied, caplog, how):
    path = copied.files["model.safetensors"]
    whole = path.read_bytes()
    digest = metadata(path)["digest"]
    if how == "of another run":
        from robustbench_lab.training.checkpoints import read_tensors, write_tensors

        write_tensors(path, {name: tensor + 1 for name, tensor in read_tensors(path)[0].items()}, {"run": "x"})
    else:
        flipped = whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:]
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length]) | {"__metadata__": {"lab": "[1]"}}
        listed = json.dumps(header).encode()
        path.write_bytes(
            {
                "truncated": whole[:-100], "empty": b"", "a flipped bit": flipped, "a header of 4 GiB": (2**32).to_bytes(8, "little"),
                "metadata that is a list": len(listed).to_bytes(8, "little") + listed + whole[8 + length :],
            }[how]
        )  # fmt: skip
    (copied.files["record.json"]).unlink()
    assert str(path) in ends(copied, "evaluate")["evaluate"]
    both = filled(chosen_tables(["paper/small"]), copied.outputs)
    assert plan_of((cell for _, cells in both for cell in cells), copied.outputs).missing("train"), "what is to be evaluated needs them"
    with caplog.at_level(logging.INFO):
        assert ends(copied, "train", "evaluate") == {"train": "", "evaluate": ""}
    assert f"trained again: {path}" in caplog.text
    assert metadata(path)["digest"] == digest
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ends(copied, "train")
    assert "finished already" in caplog.text


@pytest.mark.parametrize("key", ["model_digest", "config"])
def test_a_run_that_does_not_say_what_it_is_is_trained_again(copied, caplog, key):
    file = damaged(copied, "run.json", key, value=REMOVED)
    assert str(file) in ends(copied, "evaluate")["evaluate"]
    assert ends(copied, "train", "evaluate") == {"train": "", "evaluate": ""}
    assert f"trained again: {file} is damaged: {key} is missing" in caplog.text


def test_a_record_without_what_was_asked_for_is_no_finished_evaluation(copied):
    folder = next(OutputFolder(copied.outputs).trained()).evaluations()[0]
    record = {**folder.read(), "config": {**folder.read()["config"], "metric": {"distance": {}}}}
    folder.finish(record)
    digests = {"run": record["run"]["model_digest"]}
    assert folder.counts(digests) is False
    assert folder.finished(digests) is None


# What one may not read


def as_nobody(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `work` gives in a process whose user is nobody, so that permissions bind it."""
    there, here = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            result: object = work()
        except BaseException as error:  # what is no error of ours fails the test in the process that waits
            result = {"failed": "".join(traceback.format_exception(error))}
        os.write(here, json.dumps(result).encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as pipe:
        told: dict[str, str] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return told


@pytest.fixture
def open_to_all(made: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A copy that every user may read and write."""
    with tempfile.TemporaryDirectory() as place:
        folder = copy_of(made, Path(place))
        shutil.copytree(made.outputs.parent / "table", Path(place) / "table")
        monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(Path(place) / "table"))
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        yield folder
        for path in (Path(place), *(Path(where) / name for where, names, _ in os.walk(place) for name in names)):
            path.chmod(0o777)


@pytest.mark.parametrize(
    "name", ["runs", "run", "run.json", "evaluate", "record.json", "outcome.npz", "metrics.jsonl", "model.safetensors"]
)
def test_what_may_not_be_read_is_named_and_the_rest_is_shown(open_to_all, name):
    folder = open_to_all
    named = {"runs": folder.run.parent, "run": folder.run, "evaluate": folder.run / "evaluate"}
    path = named.get(name) or folder.files[name]
    path.chmod(0)
    ended = as_nobody(lambda: ends(folder))
    assert "failed" not in ended, ended
    assert [ended[verb] for verb in ("report", "tables", "plan")] == [""] * 3
    for verb in ("train", "evaluate"):
        assert not ended[verb] or str(path) in ended[verb]
    if name not in ("metrics.jsonl", "model.safetensors"):  # what is finished needs neither
        assert ended["evaluate"], "what is asked for and may not be read is an error"
        assert path.exists()
    if name in ("run.json", "model.safetensors"):
        assert ended["train"], "nothing is trained over what may not be read"
    page = (folder.outputs / "report" / "index.html").read_text()
    assert name in ("outcome.npz", "model.safetensors") or str(path.relative_to(folder.outputs)) in page


@pytest.mark.parametrize("name", ["n" * 300, "\0"])
def test_a_name_that_no_file_can_have_is_an_error(made, tmp_path, name):
    cfg = copy.deepcopy(made.cfg)
    cfg.output_root = str(tmp_path / name)
    ended = ends(Folder(tmp_path / name, cfg, made.evaluation))
    assert all(ended[verb] for verb in ("report", "tables", "train", "evaluate"))
