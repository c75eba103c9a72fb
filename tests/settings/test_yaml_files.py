"""YAML files that are small to write and large to read, or no text at all."""

import re
import time

import pytest
from yaml import YAMLError

from robustbench_lab.errors import LabError
from robustbench_lab.settings.yaml_files import read_yaml
from robustbench_lab.tables.reading import read_table

LISTS = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12))
LARGE = {
    "lists of lists": LISTS,
    "merged mappings": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12)),
    "with an interpolation": "b: ${a0}\n" + LISTS,
    "with a tab": LISTS + "b: 'a\tb'\n",
    "a list": "- &a0 [1, 2]\n" + "".join(f"- &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12)),
    "within itself": "a: &a [*a]\n",
    "deep": "a: " + "[" * 100_000 + "]" * 100_000,
    "deep with a tab": "b: 'a\tb'\na: " + "[" * 900 + "]" * 900,
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_what_would_fill_the_memory_is_refused_at_once(tmp_path, content):
    path = tmp_path / "large.yaml"
    path.write_text(content)
    started = time.perf_counter()
    with pytest.raises(YAMLError):
        read_yaml(path)
    assert time.perf_counter() - started < 5


def test_ordinary_aliases_are_read(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("a: &a {x: 1, y: [2]}\nb: *a\nc:\n  <<: *a\n  x: 3\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": {"x": 3, "y": [2]}}


ODD = {"large": LISTS.encode(), "latin-1": b"title: caf\xe9", "itself": b"a: &a [*a]", "nul": b"\x00", "list": b"- a", "text": b"a"}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
@pytest.mark.parametrize("like", [False, True])
def test_a_table_that_cannot_be_read_is_named(written, tmp_path, content, like):
    path = tmp_path / "table" / (written() + ".yaml")
    path.write_bytes(content)
    if like:
        path.with_name("other.yaml").write_text("like: paper/grid\ntitle: Other\n")
    with pytest.raises(LabError, match=re.escape(str(path.parent))):
        read_table("paper/other" if like else "paper/grid")
