"""Pictures of what attacks change and of what defenses show their networks: which strips, from which file, of which images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fake_records
import numpy as np
import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.figures import of_tables, pictures
from robustbench_lab.figures.pictures import Group
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table

# As SFM's figures 1, 4 and 5 are written: the change that PGD makes; images behind a defense on several datasets; masks of variants.
WORDS = ["backbone=small_cnn", "test_first=6", "panel=none"]
DEFENDED = [*WORDS, "defense=preprocessed", "keep=[defended_images]"]
COLUMN = [{"label": "PGD", "overrides": ["attack=pgd"]}]
CHANGES = {
    "overrides": WORDS, "columns": COLUMN, "figure": {"kind": "pictures", "shows": ["change"]},
    "rows": [{"label": "undefended", "overrides": ["defense=standard"]}, {"label": "bit depth", "overrides": ["defense=preprocessed"]}],
}  # fmt: skip
DATASETS = {
    "overrides": DEFENDED, "columns": COLUMN, "figure": {"kind": "pictures", "shows": ["defended", "attacked_defended"]},
    "rows": [{"label": name, "overrides": [f"dataset={name}"]} for name in ("mnist", "cifar10")],
}  # fmt: skip
MASKS = {
    "overrides": [*DEFENDED, "dataset=mnist"], "columns": COLUMN, "figure": {"kind": "pictures", "shows": ["masks", "defended"]},
    "rows": [{"label": f"{bits} bits", "overrides": [f"defense.fronts.bit_depth.bits={bits}"]} for bits in (1, 5)],
}  # fmt: skip

Drawn = Callable[[Mapping[str, Any]], tuple[list[Group], str]]


@pytest.fixture
def drawn(written: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The groups of strips and the footer of a table's figure, from records, pictures and, where a cell keeps them, defended images."""
    outputs, calls = tmp_path / "outputs", list[Any]()
    draw = pictures.strips_figure
    monkeypatch.setattr(pictures, "strips_figure", lambda *words: calls.append(words) or draw(*words))

    def drawn(changed: Mapping[str, Any], index: int = 100) -> tuple[list[Group], str]:
        table = read_table(written(published={"kind": "none"}, claims=[], **changed))
        fake_records.fill_plausibly(cells_of(table, outputs), outputs)
        cells = cells_of(table, outputs)
        for level, cell in enumerate(cells):
            folder = cell.evaluation.folder(outputs)
            x = np.load(folder / "examples.npz")["x"]
            arrays = {"index": index + np.arange(6), "clean": x // 2, "attacked": x // 2 + 1}
            if "masks" in changed["figure"]["shows"] and level == 0:
                masks = np.full((6, 1, *x.shape[2:]), 51, np.uint8)
                arrays |= {"clean_masks": masks, "attacked_masks": masks}
            np.savez(folder / "defended_images.npz", **arrays)
        assert of_tables.drawn(table, cells, outputs) is not None
        return calls[-1]

    return drawn


def test_a_change_is_shown_larger_than_it_is(drawn: Drawn) -> None:
    """Up by .25 and down by .125: around grey, ten times that is more than white and less than black; once is .75 and .375."""
    (clean, *groups), footer = drawn(CHANGES)
    assert clean.rows[0].marked
    assert [group.heading for group in groups] == ["undefended", "bit depth"]
    (strip,) = groups[0].rows
    assert strip.label == "PGD"
    assert (strip.images[0, 0, 0, 0], strip.images[0, 0, -1, -1], strip.images[0, 0, 1, 1]) == (255, 0, 128)
    assert (strip.images[1] == 128).all(), "every second image was left alone"
    assert strip.captions[0].startswith("0 → 1 ")
    assert "Changes are shown 10 times as large as they are, grey where there is none." in footer
    groups, footer = drawn(CHANGES | {"figure": {"kind": "pictures", "shows": ["change"], "amplify": 1}})
    assert groups[1].rows[0].images[0, 0, [0, -1], [0, -1]].tolist() == [191, 96]
    assert "shown 1 times" in footer


def test_each_dataset_has_its_own_clean_images(drawn: Drawn) -> None:
    groups, footer = drawn(DATASETS)
    assert [group.heading for group in groups] == ["mnist", "cifar10"]
    for group, channels in zip(groups, (1, 3), strict=True):
        clean, defended, attacked = group.rows
        assert clean.marked
        assert clean.images.shape[1] == channels
        assert (defended.images == clean.images // 2).all()
        assert (attacked.images == clean.images // 2 + 1).all()
        assert [row.label for row in group.rows[1:]] == ["as the network sees it", "attacked, as the network sees it"]
    assert "prediction before and after" not in footer


def test_masks_where_a_model_has_them(drawn: Drawn) -> None:
    (_, masked, other), footer = drawn(MASKS)
    assert [row.label for row in masked.rows] == ["masks", "as the network sees it"]
    assert masked.rows[0].captions == ["0.20"] * 6, "51 of 255"
    assert [row.label for row in other.rows] == ["as the network sees it"]
    several = [*COLUMN, {"label": "FGSM", "overrides": ["attack=fgsm"]}]
    groups, _ = drawn(MASKS | {"columns": several})
    assert [row.label for row in groups[1].rows] == ["PGD, masks", "PGD, as the network sees it", "FGSM, as the network sees it"]
    assert "Masks: white where a pixel stays whole; beneath them their mean." in footer


def test_defended_images_of_other_images_are_an_error(drawn: Drawn) -> None:
    with pytest.raises(LabError, match=r"defended_images\.npz speaks of other images than examples\.npz"):
        drawn(MASKS, index=101)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"figure": {"kind": "pictures", "shows": []}}, "figure.shows: expected a list"),
        ({"figure": {"kind": "pictures", "shows": ["mask"]}}, "figure.shows: expected a list .each one of attacked, change, "),
        ({"figure": {"kind": "pictures", "amplify": 0}}, "figure.amplify: expected a finite number > 0"),
        ({"overrides": WORDS}, r"figure.shows: expected words of each cell with keep=\[defended_images\], for masks"),
    ],
)
def test_what_cannot_be_shown(changed: Mapping[str, Any], message: str, written: Callable[..., str]) -> None:
    with pytest.raises(LabError, match=message):
        read_table(written(published={"kind": "none"}, claims=[], **(MASKS | changed)))
