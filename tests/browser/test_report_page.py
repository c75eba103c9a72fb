"""The report in headless Chromium: what its script does, and how it fits a desktop, a phone, a dark room and a printer."""

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from robustbench_lab.report.page import write_report
from robustbench_lab.tables.cells import filled
from robustbench_lab.tables.reading import chosen_tables, reshaped

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[browser]'")

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
RECORDS = 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    for program in (CHROMIUM, DRIVER):
        if not program.exists():
            pytest.skip(f"there is no {program}: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        yield driver
        driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with tables of two profiles, one with missing cells, and many records."""
    outputs = tmp_path_factory.mktemp("outputs")
    tables = chosen_tables(["efficient_defenses/table1", "smoke/digits"])
    for table, cells in filled([*tables, reshaped(tables[0], "smoke")], outputs):
        fake.fill_plausibly(cells[:-2] if table.profile == "paper" else cells, outputs)
    fake.multiply(outputs, RECORDS)
    record = next(iter(sorted(outputs.glob("runs/mnist*/evaluate/*/record.json"))))
    record.write_text("{")
    return write_report(outputs).as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """The page, fresh, on a desktop in daylight."""
    show(browser, 1280)
    browser.get(address)
    browser.execute_script("document.getElementById('record-fold').open = true")
    return browser


def show(browser: Any, width: int, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]})


def column(page: Any, number: int) -> list[str]:
    """What the rows that are shown have in a column."""
    script = "return [...document.querySelectorAll('#record-table tbody tr:not([hidden])')].map(row => row.cells[arguments[0]].textContent)"
    return page.execute_script(script, number)


def head(page: Any, number: int) -> Any:
    return page.find_element("css selector", f"#record-table thead th:nth-child({number + 1})")


def write(page: Any, words: str) -> None:
    box = page.find_element("id", "record-search")
    box.clear()
    box.send_keys(words)


def choose(page: Any, number: int, choice: str) -> None:
    page.find_element("xpath", f"//select[@data-column='{number}']/option[.='{choice}']").click()


def count(page: Any) -> str:
    return page.find_element("id", "record-count").text


def test_no_console_error_and_no_request(page, address):
    assert page.get_log("browser") == []
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    beside = address.rpartition("/")[0] + "/pictures/"
    assert [name for name in loaded if not name.startswith(("data:", beside))] == []


def test_a_heading_sorts_numbers_up_and_down(page):
    page.execute_script("arguments[0].scrollIntoView()", head(page, 9))
    button = head(page, 9).find_element("tag name", "button")
    button.click()
    figures = [float(text) for text in column(page, 9)]
    assert len(figures) == RECORDS - 1
    assert figures == sorted(figures)
    assert head(page, 9).get_attribute("aria-sort") == "ascending"
    button.click()
    assert [float(text) for text in column(page, 9)] == sorted(figures, reverse=True)
    assert head(page, 9).get_attribute("aria-sort") == "descending"


def test_words_sort_too_and_one_column_at_a_time(page):
    for number in (9, 4):
        page.execute_script("arguments[0].click()", head(page, number).find_element("tag name", "button"))
    attacks = column(page, 4)
    assert attacks == sorted(attacks)
    assert len(set(attacks)) > 3
    assert head(page, 9).get_attribute("aria-sort") is None


def test_a_heading_can_be_sorted_by_keyboard(page):
    head(page, 7).find_element("tag name", "button").send_keys("\ue007")
    assert head(page, 7).get_attribute("aria-sort") == "ascending"


def test_filters_leave_the_rows_that_fit_every_one_of_them(page):
    assert count(page) == f"{RECORDS - 1} of {RECORDS - 1}"
    all_attacks = column(page, 4)
    choose(page, 4, "pgd")
    assert set(column(page, 4)) == {"pgd"}, "and no pgd100"
    assert len(column(page, 4)) == all_attacks.count("pgd")
    assert count(page) == f"{all_attacks.count('pgd')} of {RECORDS - 1}"
    choose(page, 0, "digits")
    assert set(column(page, 0)) == {"digits"}
    write(page, "FM white")
    assert set(zip(column(page, 2), column(page, 5), strict=True)) == {("fm", "white")}
    write(page, "nothing like it")
    assert count(page) == f"0 of {RECORDS - 1}"
    page.find_element("id", "record-clear").click()
    assert count(page) == f"{RECORDS - 1} of {RECORDS - 1}"


def test_what_is_filtered_stays_so_when_sorted(page):
    choose(page, 4, "square")
    before = column(page, 9)
    page.execute_script("arguments[0].click()", head(page, 9).find_element("tag name", "button"))
    assert sorted(map(float, before)) == [float(text) for text in column(page, 9)]


def test_every_link_leads_somewhere(page):
    script = "return [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
    addresses = page.execute_script(script)
    anchors = {name[1:] for name in addresses if name.startswith("#")}
    missing = page.execute_script("return arguments[0].filter(id => !document.getElementById(id))", sorted(anchors))
    assert len(anchors) > 10
    assert missing == []
    folder = Path(page.current_url.removeprefix("file://")).parent
    files = {name for name in addresses if not name.startswith("#")}
    assert len(files) == RECORDS - 1
    assert [name for name in files if not (folder / name).exists()] == []


def test_a_dash_opens_what_fills_it(page):
    dash = page.find_element("css selector", "td a[href*='-missing-']")
    target = page.find_element("id", dash.get_attribute("href").partition("#")[2])
    assert not target.is_displayed()
    page.execute_script("arguments[0].click()", dash)
    page.execute_async_script("setTimeout(arguments[0], 100)")
    assert target.is_displayed()


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(page, address, width):
    show(page, width)
    page.get(address)
    page.execute_script("for (const box of document.querySelectorAll('details')) box.open = true")
    inside, outside = page.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert inside <= outside
    if width == 1280:
        script = """const boxes = [...document.querySelectorAll(".scroll")];
            return boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.ariaLabel)"""
        assert page.execute_script(script) == [], "no table has to be pushed sideways on a desktop"
    script = """const boxes = [...document.querySelectorAll("main p, main h3, main figure, main pre")];
        const sticksOut = (box) => box.getBoundingClientRect().right > innerWidth && !box.closest(".scroll");
        return boxes.filter(sticksOut).map((box) => box.textContent)"""
    assert page.execute_script(script) == []


def test_dark_is_dark_in_its_charts_too(page, address):
    script = """const of = (name) => getComputedStyle(document.querySelector(name));
        return [of("body").backgroundColor, of("svg.chart text").fill, of("body").color]"""
    bright = page.execute_script(script)
    show(page, 1280, "dark")
    dark = page.execute_script(script)
    light = {colour: sum(int(part) for part in colour.strip("rgb()").split(",")) for colour in {*bright, *dark}}
    assert light[bright[0]] > 700 > light[bright[2]]
    assert light[dark[0]] < 100 < light[dark[2]]
    assert light[dark[1]] > light[dark[0]] + 200, "labels of charts"


def test_it_can_be_read_without_scripts(browser, address):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        browser.find_element("css selector", "#record-fold > summary").click()
        rows = browser.find_elements("css selector", "#record-table tbody tr")
        assert len(rows) == RECORDS - 1
        assert rows[-1].is_displayed()
        assert not browser.find_element("id", "record-controls").is_displayed(), "no control that would do nothing"
        assert browser.find_elements("css selector", "#record-table button") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_paper_everything_is_there(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not page.find_element("css selector", "nav").is_displayed()
    assert not page.find_element("id", "record-controls").is_displayed()
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script("return document.querySelectorAll('main details:not([open])').length") == 0
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert page.execute_script("return document.querySelectorAll('article > details[open]').length") == 0


def test_what_is_measured_comes_first_and_the_rest_is_folded(page):
    first = page.find_element("css selector", "main > section")
    assert first.get_attribute("id") == "measured"
    cards = first.find_elements("class name", "card")
    assert len(cards) == len(page.find_elements("tag name", "article")) > 3
    assert cards[0].is_displayed()
    assert cards[0].rect["y"] < 450, "seen without scrolling"
    assert page.execute_script("return document.querySelectorAll('article details[open]').length") == 0
    assert not page.find_element("css selector", "article table.grid").is_displayed()


def test_a_card_opens_its_table(page):
    link = page.find_element("css selector", ".card h4 a")
    table = page.find_element("css selector", f"{link.get_attribute('href')[len(page.current_url) :]} table.grid")
    for _ in range(2):  # closed by hand, it opens again
        link.click()
        page.execute_async_script("setTimeout(arguments[0], 100)")
        assert table.is_displayed()
        page.execute_script("arguments[0].closest('article > details').open = false", table)


def test_pictures_are_loaded_when_they_are_looked_at(page):
    script = "return [...document.images].map((image) => [image.closest('article').id, image.complete && image.naturalWidth > 0])"
    page.execute_async_script("setTimeout(arguments[0], 300)")
    pictures = page.execute_script(script)
    assert len(pictures) > 30
    assert not any(loaded for _, loaded in pictures), "all of them are folded away"
    page.execute_script("""for (const box of document.querySelectorAll('article details')) box.open = true;
        document.querySelector('img').scrollIntoView()""")
    page.execute_async_script("setTimeout(arguments[0], 500)")
    assert page.execute_script("const first = document.images[0]; return first.complete && first.naturalWidth") > 0
    assert page.get_log("browser") == []


def test_the_projects_results_are_marked(browser, tmp_path):
    outputs, reference = tmp_path / "outputs", tmp_path / "reference"
    for root, name in ((outputs, "smoke/digits"), (reference, "efficient_defenses/table1_released")):
        for _, cells in filled(chosen_tables([name]), root):
            fake.fill_plausibly(cells, root)
    show(browser, 1280)
    browser.get(write_report(outputs, reference=reference).as_uri())
    own = browser.find_elements("css selector", ".card:not(.project)")
    theirs = [card for card in browser.find_elements("css selector", ".card.project") if card.is_displayed()]
    assert own[0].is_displayed()
    assert 0 < own[0].rect["y"] < theirs[0].rect["y"]
    assert "Efficient Defenses" in theirs[0].text
    headings = [heading.text for heading in browser.find_elements("css selector", "#measured > h3")]
    assert headings == ["Measured here", "Measured by the project, published with the code"]
    browser.execute_script("document.getElementById('record-fold').open = true")
    choose(browser, 13, "project")
    assert set(column(browser, 13)) == {"project"}
    assert set(column(browser, 0)) == {"mnist"}
    links = browser.execute_script("return [...document.querySelectorAll('#record-table a')].map((link) => link.href)")
    assert all(Path(link.removeprefix("file://")).exists() for link in links)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots_for_someone_to_look_at(page, address, tmp_path, width, scheme):
    show(page, width, scheme)
    page.get(address)
    size = page.execute_script("return [innerWidth, Math.min(document.documentElement.scrollHeight, 4000)]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
    picture = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
    path = tmp_path / f"report-{width}-{scheme}.png"
    path.write_bytes(base64.b64decode(picture))
    print(path)
    assert path.stat().st_size > 20_000, "an empty page is smaller"
