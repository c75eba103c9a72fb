"""The README's own figures are those of the published records."""

import csv
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PUBLISHED = CHECKOUT / "outputs" / "reference" / "tables" / "efficient_defenses" / "white_box.csv"


def test_the_first_table_is_the_published_one():
    rows = re.findall(r"^\| (?!MNIST)(.+?) \| (\S+) \| (\S+) \| (\S+) \|$", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    cells = {(line["row"], line["column"]): line for line in csv.DictReader(PUBLISHED.open())}
    expected = [
        (
            row,
            *(
                f"{float(figure):.2f}" if figure else "-"
                for figure in (fgsm["published"], fgsm["ours"], cells[row, "AutoAttack, 0.1"]["ours"])
            ),
        )
        for (row, column), fgsm in cells.items()
        if column == "FGSM, 0.1"
    ]
    assert rows[: len(expected)] == expected


def test_every_link_leads_somewhere():
    for page in (CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "outputs" / "reference" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
