"""The figures of Feature Matching's and PNI's tables against the dossier that they were read into, and what the cells beside them mean."""

import re
from collections.abc import Callable, Iterable
from functools import cache

import pytest

from robustbench_lab.settings.conf import CONF
from robustbench_lab.settings.identity import Evaluation
from robustbench_lab.settings.overrides import train_overrides
from robustbench_lab.tables.expansion import Expansion
from robustbench_lab.tables.grid import Column, Row, Table
from robustbench_lab.tables.reading import read_table, table_names

DOSSIER = CONF.parents[1] / "shared" / "papers" / "feature_matching.md"
pytestmark = pytest.mark.skipif(not DOSSIER.exists(), reason=f"no {DOSSIER}: the figures as they were read from the papers")

Figure = tuple[float, float | None]  # value; deviation, where there is one
Figures = dict[tuple[str, str], Figure]  # by the labels of row and column


# The dossier


@cache
def section(number: str) -> list[str]:
    """The paragraphs of `### 1a. ...`, each with its lines."""
    (found,) = re.findall(rf"^### {number}\. .*?\n(.*?)(?=^##|\Z)", DOSSIER.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", found)]


def prose(pattern: str, number: str = "1a") -> re.Match[str]:
    """The one place of the section that fits, line breaks read as spaces."""
    (found,) = re.finditer(pattern, " ".join(" ".join(section(number)).split()))
    return found


def entries_of(corner: str) -> dict[str, dict[str, str]]:
    """The Markdown table with this text in its corner: row, column, text."""
    lines = (paragraph.splitlines() for paragraph in section("1a") if paragraph.startswith(f"| {corner} |"))
    (head, _, *rows) = ([entry.strip() for entry in line.strip().strip("|").split("|")] for line in next(lines))
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def figures(row: str, columns: Iterable[str], texts: Iterable[str]) -> Figures:
    """Texts such as `269,722`, `≈85.3`, `45.94±.11`, and `-` for none. A text that is none of these is an error, not a gap."""
    found: Figures = {}
    for column, text in zip(columns, texts, strict=True):
        if text.strip() != "-":
            value, _, std = text.strip().replace(",", "").removeprefix("≈").partition("±")
            found[row, column] = (float(value), float(std) if std else None)
    return found


def without_remarks(text: str) -> str:
    return re.sub(r"\s+[\[(].*", "", text)


def network(name: str) -> str:
    """V1(20)[1.5] -> V1(20)x1.5."""
    return re.sub(r"\[(.+)\]", r"x\1", name)


ATTACKS = ("clean", "PGD", "FGSM")  # the order of the dossier's cells
METHODS = {
    "No defence": "no defence",
    "Vanilla PGD-AT": "vanilla PGD-AT",
    "PNI-W, noise on at test": "PNI-W",
    "Adv-BNN": "Adv-BNN",
    "L2P": "L2P",
    "FM w/o AT": "FM without AT",
    "FM w/ AT": "FM with AT",
}


def table1() -> Figures:
    found: Figures = {}
    for model, entries in entries_of("Model").items():
        columns = [column.replace("trainable params", "parameters").replace("C10", "CIFAR-10") for column in entries]
        found |= figures(model.replace("+FM", " with FM"), columns, entries.values())
    return found


def table2() -> Figures:
    found: Figures = {}
    for net, entries in entries_of("Net").items():
        found |= figures(f"{network(net)}, no defence", ["parameters"], [entries.pop("params")])
        for method, text in entries.items():
            row = f"{network(net)}, {METHODS[method]}"
            cells = without_remarks(text).split(" / ")
            found |= figures(row, ATTACKS, cells if cells != ["-"] else "---")
            if own := re.search(r"FM prose: clean ([\d.]+) \[paper\]", text):
                # Two figures for one cell: the paper's is in the row, PNI's in a row of its own.
                found[f"{row}, PNI's figure", "clean"] = found.pop((row, "clean"))
                found |= figures(row, ["clean"], [own[1]])
    switched_off = prose(r"\*with the noise switched off\* \(clean/PGD/FGSM\): (.*?)\. A useful check")[1]
    for entry in switched_off.split("; "):
        net, texts = entry.split(" ")
        net = {"(": f"V1{net}", "[": f"V1(20){net}"}.get(net[0], net)
        found |= figures(f"{network(net)}, PNI-W without its noise", ATTACKS, texts.split("/"))
    # The dossier's Table 2 has one count for each network, the undefended one's; FM's own is in its Table 1.
    found["V2(18), FM with AT", "parameters"] = table1()["ResNet-V2(18) with FM", "parameters"]
    return found


def table3() -> Figures:
    found: Figures = {}
    for entry in prose(r"\*\*Table 3\*\* \[paper\] \(.*?\): (.*?)\. \(All but FM are copied numbers")[1].split(" · "):
        method, net, texts = entry.split(" ")
        net = re.sub("^V([12])", r"ResNet-V\1", network(net)).replace("WRN", "WideResNet")
        found |= figures(f"{method}, {net}", ATTACKS[:2], texts.split("/"))
    # Not in the paper's table: what PNI says of Adv-BNN stands beside the figure that the paper has.
    in_pni = prose(r"PNI's own Table 6 lists Adv-BNN as VGG-16, (\S+) \[PNI\]")[1]
    return found | figures("Adv-BNN, VGG16", ATTACKS[:2], in_pni.split("/"))


def table4() -> Figures:
    found: Figures = {}
    for confidence, entries in entries_of("κ").items():
        found |= figures(f"k = {confidence}", entries, entries.values())
    return found


def table5() -> Figures:
    found: Figures = {}
    for net, entries in entries_of("One-Pixel").items():
        found |= figures(f"ResNet-{net}", entries, entries.values())
    return found


def sides() -> dict[str, str]:
    """Of Table 6's letters, the rows that are crafted on them."""
    letters = prose(r"A = (\w+) V2\(18\), B = (\w+) V2\(18\): ")
    return {"A": f"A ({letters[1]})", "B": f"B ({letters[2]})"}


def table6() -> Figures:
    found: Figures = {}
    for letter, row in sides().items():
        found |= figures(row, ["PGD on the source"], [prose(rf"PGD on {letter} ([\d.]+);")[1]])
        found |= figures(row, ["transfer to the other"], [prose(rf"{letter}⇒[AB] ([\d.]*\d)")[1]])
    return found


def pni_table2() -> Figures:
    found: Figures = {}
    for names, entries in entries_of("ResNet-20, tested with noise [PNI T2]").items():
        rows = [f"PNI-{name.removeprefix('PNI-')}" if "PNI" in names else name for name in without_remarks(names).split(" / ")]
        for i, row in enumerate(rows):
            texts = [text.split(" / ") for text in entries.values()]
            assert all(len(text) == len(rows) for text in texts)
            found |= figures(
                row.replace(" channel", ", channel").replace(" element", ", element").replace(" layer", ", layer"),
                entries,
                [text[i] for text in texts],
            )
    return found


def pni_strength() -> Figures:
    found: Figures = {}
    for row, entries in entries_of("ε").items():
        found |= figures(row, [f"{float(eps):g}" for eps in entries], entries.values())
    return found


def pni_steps() -> Figures:
    found: Figures = {}
    curves = prose(r"against the number of PGD steps ([\d/]+) at \.031: (.*?)\. C&W")
    for curve in curves[2].split("; "):
        name, texts = curve.split(" ")
        row = {"vanilla": "vanilla AT", "W+A-a": "PNI-W+A-a"}.get(name, name)
        found |= figures(row, curves[1].split("/"), texts.split("/"))
    return found


def pni_table4() -> Figures:
    found: Figures = {}
    for entry in prose(r"C&W-L2 mean norm \[PNI T4\]: (.*?)\.(?: |$)")[1].split("; "):
        net, _, trained = entry.partition(" ")
        for name_and_norm in trained.split(", "):
            name, norm = name_and_norm.split(" ")
            row = f"{net.replace('[4]', ' x4')}, { {'none': 'no defence', 'AT': 'vanilla AT'}.get(name, name) }"
            found |= figures(row, ["norm, PNI's search"], [norm])
    return found


def attacked_loss() -> Figures:
    """A table of ours: beside its cells stand the figures of Tables 1 and 4 that were found by the same attack."""
    found = {
        (f"FM, {net}, {dataset}", "PGD-7 on the own loss"): table1()[f"{net} with FM", f"{dataset} PGD"]
        for net in ("ResNet-V2(18)", "VGG19")
        for dataset in ("CIFAR-10", "SVHN")
    }
    return found | {
        ("undefended, ResNet-V2(18), CIFAR-10", "PGD-7 on the own loss"): table1()["ResNet-V2(18)", "CIFAR-10 PGD"],
        ("FM, ResNet-V2(18), CIFAR-10", "C&W (k = 0), as published"): table4()["k = 0", "FM"],
    }


READ: dict[str, Callable[[], Figures]] = {
    f"fm/{read.__name__}": read
    for read in (table1, table2, table3, table4, table5, table6, pni_table2, pni_table4, pni_strength, pni_steps, attacked_loss)
}


# The tables


@cache
def table_of(name: str) -> Table:
    return read_table(name)


def published(name: str) -> Figures:
    table = table_of(name)
    there = {(row.label, column.label): table.published_in(row, column) for row in table.rows for column in table.columns}
    return {place: (figure.value, figure.std) for place, figure in there.items() if figure is not None}


@pytest.mark.parametrize("name", READ)
def test_the_published_figures_are_those_of_the_dossier_each_in_its_place(name):
    assert table_of(name).published["kind"] == "exact"
    assert published(name) == READ[name]()


def test_no_other_table_of_fm_has_published_figures():
    """One that is like another may have that one's."""
    known = [table_of(name).published["values"] for name in READ]
    for name in table_names():
        if name.startswith("fm/") and table_of(name).published["kind"] == "exact":
            assert table_of(name).published["values"] in known, name


def test_what_is_copied_from_pni_is_told_as_quoted_from_it():
    """ "First three method columns from [PNI, Table 3]", and the noise switched off; not the paper's own clean figure and backbone."""
    table, copied = table_of("fm/table2"), {"no defence", "vanilla PGD-AT", "PNI-W", "PNI-W without its noise", "no defence, PNI's figure"}
    for row in table.rows:
        net, _, method = row.label.partition(", ")
        for column in table.columns:
            figure = table.published_in(row, column)
            if figure is not None and column.label in ATTACKS:
                own = net == "V2(18)" or (row.label, column.label) == ("V1(32), no defence", "clean")
                assert (figure.quoted_from == "PNI 2019, Table 3") == (method in copied and not own), (row.label, column.label)


def test_all_of_table_3_but_fm_is_quoted():
    """ "All but FM are copied numbers"."""
    table = table_of("fm/table3")
    there = [(row.label, table.published_in(row, column)) for row in table.rows for column in table.columns]
    quoted = {row: figure.quoted_from is not None for row, figure in there if figure is not None}
    assert [row for row, copied in quoted.items() if not copied] == ["FM, ResNet-V2(18)"]


# What the cells mean

WHITE_BOX = ("fm/table1", "fm/table2", "fm/table3")
LOOKED_AT: dict[str, Callable[[Row, Column], bool]] = {
    **dict.fromkeys(WHITE_BOX, lambda row, column: column.label.endswith(("FGSM", "PGD"))),
    # Places on an axis: one row, or column, has the same ones as the others.
    "fm/table4": lambda row, column: column.label == "FM" and row.label.startswith("k = "),
    "fm/pni_strength": lambda row, column: row.label == "PNI-W",
    "fm/pni_steps": lambda row, column: row.label == "PNI-W",
}
BACKBONES = {
    "V1(20)": "resnet20",
    "V1(32)": "resnet32",
    "V1(44)": "resnet44",
    "V1(56)": "resnet56",
    "V1(20)x1.5": "resnet20_w1_5",
    "V1(20)x2": "resnet20_w2",
    "V1(20)x4": "resnet20_w4",
    "V2(18)": "resnet18",
    "VGG19": "vgg19",
    "VGG16": "vgg19",  # with a depth of its own
}
DEFENSES = {
    "no defence": "standard",
    "vanilla PGD-AT": "adversarial_training_pni",
    "Vanilla": "adversarial_training_pni",
    "RSE": "rse",
    "PNI": "pni",
    "PNI-W": "pni",
    "PNI-W without its noise": "pni",
    "Adv-BNN": "adv_bnn",
    "L2P": "learn2perturb",
    "FM": "fm",
    "FM without AT": "fm",
    "FM with AT": "fm",
}


def words_of(name: str, wanted: Callable[[Row, Column], bool] = lambda row, column: True) -> dict[tuple[str, str], list[str]]:
    return {(row.label, column.label): words for row, column, words in table_of(name).words() if wanted(row, column)}


def way(words: list[str]) -> tuple[str, ...]:
    """The words but those of the attacked run: what it is does not change how it is attacked, its images aside."""
    of_run = [word for word in train_overrides(words) if not word.startswith("dataset")]
    return tuple(word for word in words if word not in of_run)


@pytest.fixture(scope="module")
def evaluations() -> dict[str, dict[tuple[str, str], Evaluation]]:
    """Of the cells that are looked at below, by table. Those that are attacked in one way share the evaluation of the first: composing each
    one of them takes long. In Table 6 the runs count, too."""
    chosen = {name: words_of(name, wanted) for name, wanted in LOOKED_AT.items()}
    first: dict[tuple[str, ...], list[str]] = {}
    for cells in chosen.values():
        for words in cells.values():
            first.setdefault(way(words), words)
    transfer = words_of("fm/table6")
    expansion = Expansion()
    shared = {name: {place: expansion.evaluation(first[way(words)]) for place, words in cells.items()} for name, cells in chosen.items()}
    return shared | {"fm/table6": {place: expansion.evaluation(words) for place, words in transfer.items()}}


@pytest.mark.parametrize("name", WHITE_BOX)
def test_fgsm_and_pgd_are_the_papers(evaluations, name):
    """Of the dossier's settings; "the model's own loss"."""
    of_paper = prose(r"PGD ε 8/255, (\d+) steps, step (\.\d+) \(not 2/255\), random start, (\d+) repeats; FGSM ε 8/255;", "1b")
    assert prose(r"Eq\. 1.2 say l_f, i\.e\. the model's own loss", "1d")
    pgd = {
        "_target_": "robustbench_lab.attacks.pgd.PGD",
        "loss": "own",
        "steps": int(of_paper[1]),
        "step_size": float(of_paper[2]),
        "relative_step_size": None,
        "random_start": "uniform",
        "restarts": 1,
    }
    fgsm = {"_target_": "robustbench_lab.attacks.fgsm.FGSM", "loss": "own"}
    for (row, column), evaluation in evaluations[name].items():
        config, place = evaluation.config, (row, column)
        assert evaluation.source is None, place
        assert config["threat_model"]["sees"] == "defended", place
        assert (config["budget"]["norm"], config["budget"]["eps"]) == ("linf", 8 / 255), place
        assert evaluation.run.choices["dataset"] == ("svhn" if column.startswith("SVHN") else "cifar10"), place
        assert config["test_size"] is None, place
        attack, wanted = config["attack"], fgsm if column.endswith("FGSM") else pgd
        if column.endswith("PGD"):
            assert (attack["_target_"], attack["times"]) == ("robustbench_lab.attacks.repeated.Repeated", int(of_paper[3])), place
            attack = attack["attack"]
        assert {key: attack.get(key) for key in wanted} == wanted, place


@pytest.mark.parametrize("name", ["fm/table2", "fm/table3"])
def test_a_noisy_model_is_asked_once_and_with_its_noise_unless_the_row_says_otherwise(evaluations, name):
    """Of PNI, "one noisy pass per query, no averaging, no EOT"; the columns are read alike for the others."""
    assert prose(r"Test: one noisy pass per query, no averaging, no EOT\.", "1c")
    for (row, column), evaluation in evaluations[name].items():
        silent = row.endswith("without its noise")
        assert evaluation.config.get("without_noise", False) == silent, (row, column)
        if not silent and any(method in row for method in ("PNI", "Adv-BNN", "L2P", "RSE")):
            assert evaluation.config["eot_samples"] == 1, (row, column)


@pytest.mark.parametrize("name", WHITE_BOX)
def test_a_columns_metric_is_that_of_its_label(name):
    """ "PGD = mean ± std of 5 PGD runs"; the others may be the mean over the draws of a verdict, where output is random."""
    metrics = {
        "parameters": {"parameters"},
        "clean": {"clean_accuracy", "clean_accuracy_mean"},
        "FGSM": {"robust_accuracy", "robust_accuracy_mean"},
        "PGD": {"accuracy_of_runs"},
        "strongest": {"robust_accuracy", "robust_accuracy_mean"},
    }
    table = table_of(name)
    for column in table.columns:
        assert table.metric_of(column).name in metrics[column.label.split(" ")[-1]], column.label


@pytest.mark.parametrize("name", WHITE_BOX)
def test_a_rows_network_is_that_of_its_label(name):
    for (label, column), words in words_of(name).items():
        if name == "fm/table1":
            net, method = label.removesuffix(" with FM"), "FM" if label.endswith(" with FM") else "no defence"
        else:
            net, method = label.split(", ") if name == "fm/table2" else reversed(label.split(", "))
        chosen = dict(word.split("=", 1) for word in words)
        assert chosen["backbone"] == BACKBONES[net.removeprefix("ResNet-")], (label, column)
        assert chosen["defense"] == DEFENSES[method], (label, column)
        assert chosen.get("defense.adversarial_weight") == ("0" if method == "FM without AT" else None), (label, column)
        assert chosen.get("backbone.depth") == ("16" if net == "VGG16" else None), (label, column)


def test_table_6_crafts_on_the_network_of_its_label(evaluations):
    """Of "A⇒B", A is what the attacker sees and B what is attacked."""
    cells, (a, b) = evaluations["fm/table6"], sides().values()
    assert table_of("fm/table6").metric == "attack_success_rate"
    defenses = {a: "standard", b: "fm"}
    for crafted_on, tried_on in ((a, b), (b, a)):
        white, transfer = cells[crafted_on, "PGD on the source"], cells[crafted_on, "transfer to the other"]
        assert (white.source, white.config["threat_model"]["sees"]) == (None, "defended")
        assert white.run.choices == {"dataset": "cifar10", "backbone": "resnet18", "defense": defenses[crafted_on], "training": "fm"}
        assert transfer.config["threat_model"]["sees"] == "substitute"
        assert transfer.config["threat_model"]["overrides"] == [f"defense={defenses[crafted_on]}"]
        assert transfer.source == white.run
        assert transfer.run == cells[tried_on, "PGD on the source"].run
        assert (transfer.config["attack"], transfer.config["budget"]) == (white.config["attack"], white.config["budget"])


def test_places_on_an_axis_are_those_of_their_labels(evaluations):
    for (row, _), evaluation in evaluations["fm/table4"].items():
        assert evaluation.config["attack"]["confidence"] == float(row.removeprefix("k = "))
    for (_, column), evaluation in evaluations["fm/pni_strength"].items():
        assert (evaluation.config["budget"]["eps"], evaluation.config["attack"]["steps"]) == (float(column), 7)
    for (_, column), evaluation in evaluations["fm/pni_steps"].items():
        assert (evaluation.config["budget"]["eps"], evaluation.config["attack"]["steps"]) == (0.031, int(column))
