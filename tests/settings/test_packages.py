"""Choices, classes and tables of other packages and folders: found without an import, named by content, refused by file and key."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from other_package import write, write_choice

from robustbench_lab.attacks.base import Attack
from robustbench_lab.errors import LabError
from robustbench_lab.settings import packages
from robustbench_lab.settings.build import build, named
from robustbench_lab.settings.conf import CONF, choice_file, choices, compose, plain
from robustbench_lab.settings.identity import canonical, run_at_words
from robustbench_lab.settings.packages import FOLDERS, PACKAGES, sources, taken, whose
from robustbench_lab.settings.pieces import piece
from robustbench_lab.settings.verbs import check_environment, groups_of
from robustbench_lab.tables.reading import chosen_tables, table_names

PGD = "# python -m robustbench_lab evaluate attack=my_pgd\n# Three steps.\ndefaults: [pgd]\nsteps: 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of choices that is given, with attack=my_pgd; whatever a test gives beside it is forgotten."""
    place = tmp_path / "choices"
    write_choice(place, "attack/my_pgd", PGD)
    monkeypatch.setenv(FOLDERS, str(place))
    return place


def test_what_a_package_has_is_found_without_importing_it(other_package: Path) -> None:
    assert {"uphill", "uphill_half", "pgd"} <= {*choices("attack")}
    assert choice_file("defense", "noisy") == other_package / "conf" / "defense" / "noisy.yaml"
    assert "defense: " in (told := groups_of("train"))
    assert ", noisy" in told
    assert "theirs/sides" in table_names()
    assert [whose(choice_file("attack", name) or Path()) for name in ("uphill", "pgd")] == ["theirlab", ""]
    assert plain(compose("evaluate", ["attack=uphill_half", "dataset=sides"])[0], "attack")["attack"]["share"] == 0.5
    check_environment()
    assert not any(name.startswith("theirlab") for name in sys.modules)
    assert build(piece("attack", "uphill_half").content, "attack", Attack).share == 0.5
    (table,) = chosen_tables(["theirs/*"])
    assert table.path == other_package / "conf" / "table" / "theirs" / "sides.yaml"
    assert {"theirlab.attacks", "theirlab.figures"} <= {*sys.modules}


def test_without_its_name_nothing_of_it_is_there(other_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = piece("attack", "uphill").content
    monkeypatch.delenv(PACKAGES)
    assert "uphill" not in choices("attack")
    assert "theirs/sides" not in table_names()
    with pytest.raises(LabError, match=r"^attack\._target_: .*'theirlab\.attacks\.Uphill'; ROBUSTBENCH_LAB_PACKAGES=theirlab allows"):
        build(target, "attack", Attack)
    monkeypatch.setenv(PACKAGES, "json")
    with pytest.raises(LabError, match="ROBUSTBENCH_LAB_PACKAGES=json,theirlab allows its package"):
        build(target, "attack", Attack)


def test_a_package_without_choices_has_callables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PACKAGES, "json")
    assert sources() == ()
    check_environment()
    assert named("json.loads", "backbone.call").__name__ == "loads"
    with pytest.raises(LabError, match=r"^backbone\.call: "):
        named("json.codecs.open", "backbone.call")  # what it imports is not its own


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`installed("theirlab")`: a distribution whose entry point names that package."""
    monkeypatch.delenv(PACKAGES, raising=False)

    def install(name: str) -> None:
        info = tmp_path / "lib" / "theirs-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[robustbench_lab]\nanything = {name}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "lib"))
        packages._installed.cache_clear()

    yield install
    packages._installed.cache_clear()


def test_an_entry_point_names_a_package(installed: Callable[[str], None], tmp_path: Path) -> None:
    write(tmp_path / "lib")
    installed("theirlab")
    assert packages.packages() == ("theirlab",)
    assert "uphill" in choices("attack")


def test_a_broken_entry_point_is_told_as_such(installed: Callable[[str], None]) -> None:
    installed("gone")
    with pytest.raises(LabError, match=r"^the installed entry point robustbench_lab = gone: .*there is no gone; install it again"):
        check_environment()


def test_a_class_of_another_package_is_another_class(other_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that was copied with its class has another name; one that moved within its package keeps it."""
    lib = other_package.parent
    shutil.copytree(other_package, lib / "copied")
    path = lib / "copied" / "conf" / "defense" / "noisy.yaml"
    path.write_text(path.read_text().replace("theirlab", "copied"))
    for group in ("attack", "dataset", "figure", "table"):
        shutil.rmtree(lib / "copied" / "conf" / group)
    path.rename(path.with_name("noisy_copied.yaml"))
    monkeypatch.setenv(PACKAGES, "theirlab,copied")
    words = ["dataset=moons", "backbone=mlp_toy", "training=plane"]
    ours, theirs, copied = (run_at_words([*words, f"defense={name}"]).fingerprint for name in ("standard", "noisy", "noisy_copied"))
    assert len({ours, theirs, copied}) == 3
    moved = path.with_name("noisy_moved.yaml")
    moved.write_text("_target_: copied.in_another.module.Noisy\nstd: 0.05\n")
    packages._files_in.cache_clear()
    assert run_at_words([*words, "defense=noisy_moved"]).fingerprint == copied
    assert canonical({"_target_": "theirlab.a.B"}) != canonical({"_target_": "robustbench_lab.a.B"})


# Folders


@pytest.mark.parametrize(
    "words",
    [
        ["--config-dir", "{}"],
        ["--config-dir={}"],
        ["--config-d", "{}"],
        ["-cd", "{}"],
        ["hydra.searchpath=[{}]"],
        ["+hydra.searchpath=['file://{}']"],
        ['hydra.searchpath=[pkg://theirlab.more, "{}"]'],
    ],
)
def test_a_folder_by_any_word_is_the_variable(words: list[str], other_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = other_package.parents[1] / "more, or less"
    write_choice(place, "attack/mine", PGD)
    write_choice(other_package / "more", "attack/more", PGD)
    quoted = [word.format(place) if "[{" not in word else word.replace("{}", f"'{place}'") for word in words]
    monkeypatch.setenv(FOLDERS, "")
    assert taken(["train", *quoted, "seed=1"]) == ["train", "seed=1"]
    assert os.environ[FOLDERS].split(os.pathsep) == [*([f"{other_package}/more"] if "pkg" in words[0] else []), str(place)]
    assert ("more" in choices("attack")) == ("pkg" in words[0])
    assert plain(compose("evaluate", ["attack=mine"])[0], "attack")["attack"]["steps"] == 3


def test_folders_that_are_named_stay_beside_those_of_the_variable(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_choice(tmp_path / "other", "budget/mine", "defaults: [linf]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDERS, "choices")
    taken(["--config-dir=other"])
    assert os.environ[FOLDERS].split(os.pathsep) == [str(folder), str(tmp_path / "other")]  # whole, for workers that are elsewhere
    assert "my_pgd" in choices("attack")
    assert "mine" in choices("budget")


def test_a_folder_of_a_package_that_is_named_too_is_one(other_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS, str(other_package / "conf"))
    check_environment()
    (source,) = sources()
    assert source.whose == "theirlab"


def test_pages_depend_on_a_packages_code_but_on_nothing_beside_a_folder(folder: Path, other_package: Path) -> None:
    assert [source.whole for source in sources()] == [other_package, folder]


def test_a_running_cluster_is_told_the_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher starts inherits them; a Ray cluster was started by somebody else."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    monkeypatch.setenv(PACKAGES, "json")
    launcher = compose("train", ["hydra/launcher=ray_cluster"])[0].hydra.launcher
    assert dict(launcher.ray.init.runtime_env.env_vars) == {PACKAGES: "json", FOLDERS: str(folder)}


# What is refused


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", r"^ROBUSTBENCH_LAB_PACKAGES: expected a package that Python can import, but there is no nowhere; is its folder in"),
        ("nowhere.inside", r"^ROBUSTBENCH_LAB_PACKAGES: nowhere\.inside cannot be imported: .* No module named 'nowhere'"),
        ("my-lab", r"^ROBUSTBENCH_LAB_PACKAGES: expected names of packages with commas between them, .*, got 'my-lab'"),
        ("/home/mylab", r"^ROBUSTBENCH_LAB_PACKAGES: expected names of packages"),
        ("json,robustbench_lab.attacks", r"^ROBUSTBENCH_LAB_PACKAGES: expected packages of others, got 'robustbench_lab\.attacks'"),
    ],
)
def test_names_that_are_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PACKAGES, name)
    with pytest.raises(LabError, match=said):
        check_environment()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config-dir"], r"^--config-dir: expected a folder of choices, .*, but there is no folder ''"),
        (["-cd=/nowhere"], r"^--config-dir: .* no folder '/nowhere'"),
        (["--config-dir", "~nobody/x"], r"^--config-dir: .* no folder '~nobody/x'"),
        (["hydra.searchpath=[file:///nowhere]"], r"^hydra\.searchpath: .* no folder '/nowhere'"),
        (["hydra.searchpath=[pkg://theirlab.conf]"], r"^hydra\.searchpath: expected a folder, .* of a package in ROBUSTBENCH_LAB_PACKAGES"),
        (["hydra.searchpath=[http://a.b/c]"], r"^hydra\.searchpath: expected a folder, .* got 'http://a\.b/c'"),
        (["hydra.searchpath={a: 1}"], r"^hydra\.searchpath: expected a list of folders, .* got '{a: 1}'"),
        (["hydra.searchpath=[1"], r"^hydra\.searchpath: expected a list of folders"),
    ],
)
def test_places_that_are_refused(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS, "")
    with pytest.raises(LabError, match=said):
        taken(words)


@pytest.mark.parametrize(
    ("choice", "text", "said"),
    [
        ("attak/mine", "a: 1", r"/attak: expected a group of choices, one of attack, .*, got 'attak'; did you mean attack\?$"),
        ("hydra/launcher/mine", "_target_: os.system", r"/hydra: expected a group of choices"),
        ("grid/mine", "everywhere: []", r"/grid: expected a group of choices"),
        ("attack/pgd", "a: 1", rf"^attack=pgd: there are two, {CONF}/attack/pgd\.yaml and /.*/choices/attack/pgd\.yaml; rename the second"),
        ("attack/broken", "a: [", r"^attack=broken: /.*/broken\.yaml cannot be read: while parsing a flow node .*line 2, column 1"),
        ("attack/list", "- 1", r"^attack=list: expected a mapping, whose defaults are .*, in /.*/list\.yaml; what it does to other keys"),
        ("attack/far", "# @package _global_\nseed: 1", r"^attack=far: .* what it does to other keys is not taken"),
        ("attack/odd", "defaults: 7", r"^attack=odd: expected a mapping, whose defaults are"),
        ("attack/odd", "defaults: [nowhere]", r"^attack=odd: .* there is no attack=nowhere"),
        ("attack/odd", "defaults: [{/hydra/launcher: joblib}]", r"^attack=odd: .* {'/hydra/launcher': 'joblib'} is neither"),
        ("attack/odd", "defaults: [odd]", r"^attack=odd: expected defaults that end"),
        ("table/mine", "title: x", r"/table/mine\.yaml: expected a table in the folder of its paper, table/<paper>/mine\.yaml"),
    ],
)
def test_files_that_are_refused(folder: Path, choice: str, text: str, said: str) -> None:
    write_choice(folder, choice, f"{text}\n")
    packages._files_in.cache_clear()
    with pytest.raises(LabError, match=said):
        check_environment()


def test_two_packages_with_one_choice_are_both_named(other_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(other_package.parent, "another")
    monkeypatch.setenv(PACKAGES, "theirlab,another")
    with pytest.raises(LabError, match=r"^attack=uphill: there are two, /.*/theirlab/conf/.* and /.*/another/conf/.*; rename the second"):
        check_environment()


def test_a_folder_without_groups_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    with pytest.raises(LabError, match=rf"^{tmp_path}: expected groups of choices in it, such as attack/mine\.yaml, .*, got none"):
        check_environment()


def test_what_an_import_raises_is_told(other_package: Path) -> None:
    (other_package / "attacks.py").write_text("1 / 0\n")
    with pytest.raises(LabError, match=r"^attack\._target_: theirlab\.attacks cannot be imported: ZeroDivisionError: division by zero"):
        build(piece("attack", "uphill").content, "attack", Attack)
    (other_package / "attacks.py").write_text("import nowhere\n")
    with pytest.raises(LabError, match=r"^attack\._target_: .* got 'theirlab\.attacks\.Uphill': No module named 'nowhere'"):
        build(piece("attack", "uphill").content, "attack", Attack)


def test_another_folder_in_its_place_is_read_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert piece("attack", "my_pgd").content["steps"] == 3
    write_choice(tmp_path / "other", "attack/my_pgd", "defaults: [pgd]\nsteps: 7\n")
    monkeypatch.setenv(FOLDERS, str(tmp_path / "other"))
    assert piece("attack", "my_pgd").content["steps"] == 7
