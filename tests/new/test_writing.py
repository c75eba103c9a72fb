"""`new` writes files that are right from the start, and nothing where something is."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robustbench_lab.errors import LabError
from robustbench_lab.new.writing import GROUPS, LONGEST, main
from robustbench_lab.settings.conf import CONF

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTBENCH_LAB_PACKAGES", raising=False)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_two_files_and_their_test(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["attack", "my_attack", "--package", "mylab"])
    written = ["mylab/__init__.py", "mylab/attacks/__init__.py", "mylab/attacks/my_attack.py", "mylab/conf/attack/my_attack.yaml"]
    assert files(here) == {*written, "mylab/tests/test_attack_my_attack.py"}
    said = capsys.readouterr().out.splitlines()
    assert said[:5] == [f"wrote {path}" for path in (*written, "mylab/tests/test_attack_my_attack.py")]
    assert said[6:] == [
        "next:",
        "  export ROBUSTBENCH_LAB_PACKAGES=mylab",
        "  python -m pytest mylab/tests/test_attack_my_attack.py",
        "  python -m robustbench_lab evaluate train=true attack=my_attack",
    ]
    main(["defense", "my_attack", "--package=mylab"])  # another group, the same name
    assert "wrote mylab/__init__.py" not in capsys.readouterr().out


def test_what_is_written_keeps_the_project_s_own_rules(here: Path) -> None:
    """Whatever the length of the name."""
    for name in ("z", "my_own", "a_name_that_is_as_long_as_a_name_may_be_"):
        assert len(name) <= LONGEST
        for group in GROUPS:
            main([group, name, "--package", "mylab"])
    for check in (["check"], ["format", "--check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", "--config", str(PYPROJECT), "."], capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout
    for path in here.rglob("*.yaml"):
        assert path.read_text().startswith("# python -m robustbench_lab ")
        assert "$name" not in path.read_text()


def test_a_package_in_another_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["table", "my_table", "--package", "src/mylab"])
    assert files(here) == {"src/mylab/__init__.py", "src/mylab/conf/table/mylab/my_table.yaml", "src/mylab/tests/test_table_my_table.py"}
    said = capsys.readouterr().out
    assert "next, in src:" in said
    assert "python -m pytest mylab/tests/test_table_my_table.py" in said


def test_the_first_package_of_the_variable_is_written_into(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "elsewhere" / "otherlab").mkdir(parents=True)
    (here / "elsewhere" / "otherlab" / "__init__.py").touch()
    monkeypatch.syspath_prepend(here / "elsewhere")
    monkeypatch.setenv("ROBUSTBENCH_LAB_PACKAGES", "otherlab, another")
    main(["backbone", "my_backbone"])
    assert (here / "elsewhere" / "otherlab" / "conf" / "backbone" / "my_backbone.yaml").exists()
    assert (here / "elsewhere" / "otherlab" / "tests" / "test_backbone_my_backbone.py").exists()
    assert "export ROBUSTBENCH_LAB_PACKAGES=otherlab\n" in capsys.readouterr().out


def test_a_name_of_another_package_s_choice_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "otherlab" / "conf" / "attack").mkdir(parents=True)
    (here / "otherlab" / "conf" / "attack" / "theirs.yaml").touch()
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("ROBUSTBENCH_LAB_PACKAGES", "otherlab")
    with pytest.raises(LabError, match=r"^theirs: .*otherlab/conf/attack/theirs\.yaml is attack=theirs already"):
        main(["attack", "theirs", "--package", "mylab"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", r"^new: expected one of attack, .*, table and a name, got nothing; python -m robustbench_lab new attack\|"),
        ("attack", r"^new: expected one of .* and a name, got attack;"),
        ("model x --package mylab", r"^new: expected one of .* and a name, got model x;"),
        ("attack x y --package mylab", r"^new: expected one of .* and a name, got attack x y;"),
        ("attack x", r"^new: expected a package to write into; name one with --package mylab, or set ROBUSTBENCH_LAB_PACKAGES=mylab"),
        ("attack x --package", r"^--package: expected the folder of a package, got nothing"),
        ("attack x --package my-lab", r"^--package: expected a folder whose name can be imported, such as mylab, got 'my-lab'"),
        ("attack x --package torch", r"^--package: expected a name of its own, but `import torch` already finds "),
        ("attack x --package robustbench_lab", r"^--package: expected a name of its own"),
        ("attack 1x --package mylab", r"^1x: expected a name of letters, digits and _, at most 40, such as my_attack"),
        ("attack a.b --package mylab", r"^a\.b: expected a name of letters"),
        ("attack ../x --package mylab", r"^\.\./x: expected a name of letters"),
        ("attack class --package mylab", r"^class: expected a name of letters"),
        (f"attack {'x' * 41} --package mylab", r"at most 40"),
        (
            "attack null --package mylab",
            r"^null: expected a name, but attack=null is read as a value; choose another name, such as my_attack",
        ),
        ("backbone NaN --package mylab", r"^NaN: expected a name, but backbone=NaN is read as a value"),
        ("attack PGD --package mylab", r"^PGD: .*conf/attack/pgd\.yaml is attack=pgd already; choose another name"),
        ("attack pgd --package mylab", r"^pgd: .*conf/attack/pgd\.yaml is attack=pgd already; choose another name"),
        ("table digits --package smoke", r"^digits: .*conf/table/smoke/digits\.yaml is table=digits already"),
        ("attack budget --package mylab", r"^budget: expected a name of its own, but its class would be called Budget"),
    ],
)
def test_what_is_refused(words: str, said: str, here: Path) -> None:
    with pytest.raises(LabError, match=said):
        main(words.split())
    assert not files(here)


def test_names_that_differ_by_case_alone_are_refused(here: Path) -> None:
    """They are one file where a disk does not tell them apart."""
    main(["attack", "mine", "--package", "mylab"])
    there = files(here)
    with pytest.raises(LabError, match=r"^Mine: .*conf/attack/mine\.yaml is attack=mine already; choose another name"):
        main(["attack", "Mine", "--package", "mylab"])
    assert files(here) == there


def test_tables_of_one_name_in_two_packages_have_two_titles(here: Path) -> None:
    """No two tables may have one, or none of all tables can be read."""
    titles = set()
    for package, name in (("mylab", "first"), ("otherlab", "first"), ("mylab", "first_")):
        main(["table", name, "--package", package])
        titles.add(yaml.safe_load((here / package / "conf" / "table" / package / f"{name}.yaml").read_text())["title"])
    assert len({" ".join(title.split()) for title in titles}) == 3


def test_no_file_is_overwritten_and_none_written_beside_it(here: Path) -> None:
    theirs = here / "mylab" / "conf" / "attack" / "mine.yaml"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(LabError, match=r"mine\.yaml is there already and is not overwritten"):
        main(["attack", "mine", "--package", "mylab"])
    assert theirs.read_text() == "mine"
    assert files(here) == {"mylab/conf/attack/mine.yaml"}


def test_where_nothing_can_be_written_nothing_is_left(here: Path) -> None:
    (here / "mylab").mkdir()
    (here / "mylab" / "tests").write_text("no folder")
    with pytest.raises(LabError, match=r"^new: .*tests.*; nothing was written"):
        main(["attack", "mine", "--package", "mylab"])
    assert files(here) == {"mylab/tests"}


def test_torch_and_hydra_are_not_imported(here: Path) -> None:
    code = (
        "import sys; from robustbench_lab.new.writing import main; main(['attack', 'mine', '--package', 'mylab']); "
        "print({'torch', 'hydra', 'omegaconf'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith("set()\n")


def test_templates_name_the_settings_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_lab.new import writing

    assert writing.CONF == CONF
