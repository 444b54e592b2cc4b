"""The HTML report in a real browser: sorted, searched, expanded, by mouse and by keyboard."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SMALL, DEEP = 1, 0  # their places among the predictions, which are sorted by test


class Page:
    """The page of a report, with one prediction chosen."""

    def __init__(self, browser, report, prediction=SMALL, *, width=1280, dark=False):
        self.browser = browser
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(f"{(report / 'page.html').as_uri()}#prediction={prediction}")
        self.wait("return document.querySelectorAll('#icicle path.surface').length > 1")

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def wait(self, code):
        return WebDriverWait(self.browser, 60).until(lambda _: self.script(code))

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def rows(self):
        """Index of the layer in each row that is drawn."""
        return self.script(
            "return [...document.querySelectorAll('#table tbody tr[data-index]')]"
            ".map((row) => Number(row.dataset.index))"
        )

    def sort(self, title):
        for button in self.browser.find_elements(By.CSS_SELECTOR, "#table th button"):
            if button.text.startswith(title):
                button.click()
                return
        raise AssertionError(title)

    def background(self):
        return self.script("return getComputedStyle(document.body).backgroundColor")

    def capture(self, path):
        size = self.script(
            "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 4000), "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        taken = self.browser.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(taken["data"]))


@pytest.fixture
def open_page(chromium, report):
    return lambda *arguments, **options: Page(chromium, report, *arguments, **options)


@pytest.fixture
def layers(report):
    """Layers of the small model, from the JSON report."""
    return json.loads((report / "report.json").read_text("utf-8"))["predictions"][SMALL]["layers"]


def test_nothing_is_fetched_and_nothing_goes_wrong(open_page):
    page = open_page(DEEP)
    assert page.script("return performance.getEntriesByType('resource').length") == 0
    assert page.browser.get_log("browser") == []
    assert page.browser.title == "Predicted energy and runtime"


def test_names_are_shown_and_never_run(open_page):
    page = open_page()
    assert "</script><img src=x onerror=alert(1)>" in page.find("#table").text
    assert page.browser.find_elements(By.CSS_SELECTOR, "img") == []


def test_the_broken_test_comes_first_with_its_budget(open_page):
    page = open_page()
    first = page.find("#overview tbody tr")
    assert first.text.startswith("✗ over")
    assert " of 150 mJ" in first.text
    assert page.find("#verdict").text == "1 of 2 within budget and baseline."


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_round(open_page, layers):
    page = open_page()
    order = sorted(range(len(layers)), key=lambda index: -layers[index]["energy_mj"])
    page.sort("energy")
    gone = len(layers)  # what is no layer any more costs nothing
    assert [layers[index]["energy_mj"] for index in page.rows() if index != gone] == [
        layers[index]["energy_mj"] for index in order
    ]
    assert page.find("#table th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.sort("energy")
    assert layers[page.rows()[-1]]["energy_mj"] == layers[order[0]]["energy_mj"]
    assert page.find("#table th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_search_finds_by_path_and_operation_together(open_page, layers):
    page = open_page()
    page.find("#search").send_keys("blocks.1 conv2d")
    expected = [
        index
        for index, layer in enumerate(layers)
        if layer["path"].startswith("blocks.1.") and layer["op"] == "conv2d"
    ]
    assert page.rows() == expected
    assert page.find("#count").text.startswith(f"2 of {len(layers) + 1} layers, ")
    page.find("#search").send_keys(" nowhere")
    assert page.rows() == []


def test_only_changed_layers_are_left_with_the_one_that_is_gone(open_page):
    page = open_page()
    page.find("#changed").click()
    text = page.find("#table tbody").text
    assert "blocks.1.conv1" in text
    assert "stem" not in text
    gone = page.find("#table tr.gone")
    assert gone.text.split()[:1] == ["extra"]
    assert "gone" in gone.text


def test_a_layer_that_is_gone_stands_where_it_was(open_page, layers):
    rows = open_page().rows()
    assert rows == [*range(len(layers) - 1), len(layers), len(layers) - 1]


def test_a_layer_is_opened_by_keyboard_and_tells_all(open_page, layers):
    page = open_page()
    page.find("#search").send_keys("blocks.1.conv1", Keys.TAB, Keys.TAB)
    for _ in range(20):  # over the headings, to the first layer
        active = page.browser.switch_to.active_element
        if active.get_attribute("class") == "layer":
            break
        active.send_keys(Keys.TAB)
    active.send_keys(Keys.ENTER)
    details = page.find("#table tr.details").text
    assert "weights 128x64x3x3" in details
    flops = next(each["flops"] for each in layers if each["path"] == "blocks.1.conv1")
    assert f"{flops:,} FLOPs" in details
    assert "more operations" in details
    active.send_keys(Keys.ENTER)
    assert page.browser.find_elements(By.CSS_SELECTOR, "#table tr.details") == []


def test_modules_open_in_the_tree_and_in_the_picture(open_page):
    page = open_page()
    summary = next(
        each
        for each in page.browser.find_elements(By.CSS_SELECTOR, "#modules summary")
        if each.text.startswith("blocks")
    )
    summary.send_keys(Keys.ENTER)
    page.wait("return document.querySelectorAll('#modules details details details').length === 3")
    assert page.find("#trail").text == "Small"
    page.script(
        "[...document.querySelectorAll('#icicle g.slice')]"
        ".find((slice) => slice.textContent.startsWith('blocks'))"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    page.wait("return document.getElementById('trail').textContent === 'Smallblocks'")
    page.find("#trail button").click()
    page.wait("return document.getElementById('trail').textContent === 'Small'")


def test_the_chart_outlines_the_baseline_where_it_differs(open_page):
    page = open_page()
    traces = page.script(
        "return document.getElementById('chart').data.map((each) => [each.name, each.x.length])"
    )
    assert (
        dict(traces)["baseline"] == 6
    )  # four of the wider block, the one that is gone, and one after it
    page.find("#metric input[value=runtime]").click()
    page.wait(
        "return document.getElementById('chart').layout.yaxis.title.text.startsWith('runtime')"
    )


def test_thousands_of_layers_are_drawn_a_few_at_a_time(open_page):
    page = open_page(DEEP)
    assert len(page.rows()) == 200
    page.find("#more").click()
    assert len(page.rows()) == 400
    page.script("shown.table.reveal(1999)")
    assert page.browser.switch_to.active_element.text == "stages.7.49"


def test_a_link_and_the_back_button_choose_the_prediction(open_page):
    page = open_page(SMALL)
    page.browser.find_elements(By.CSS_SELECTOR, "#overview a")[1].click()
    page.wait("return document.getElementById('prediction-title').textContent.endsWith('deep')")
    page.browser.back()
    page.wait("return document.getElementById('prediction-title').textContent.endsWith('small')")


def test_the_theme_follows_the_system_and_the_button(open_page):
    dark, light = open_page(dark=True).background(), open_page().background()
    assert dark != light
    page = open_page(dark=True)
    page.find("#theme").click()
    assert page.background() == light
    assert page.find("#theme").text == "Dark theme"


def test_a_page_of_2000_layers_is_small(report):
    assert (report / "page.html").stat().st_size <= 6_000_000


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "phone"])
@pytest.mark.parametrize("prediction", [SMALL, DEEP], ids=["small", "deep"])
def test_it_fits_the_screen(open_page, screenshots, prediction, width, dark):
    page = open_page(prediction, width=width, dark=dark)
    page.find("#table .layer").click()
    assert page.script("return document.documentElement.scrollWidth") <= width
    tables = page.script("""return [...document.querySelectorAll("table:not(#table)")]
        .filter((each) => each.scrollWidth > each.parentNode.clientWidth)
        .map((each) => each.innerText)""")
    assert tables == []  # only the list of layers is moved sideways
    names = ("deep" if prediction == DEEP else "small", width, "dark" if dark else "light")
    path = screenshots / ("-".join(map(str, names)) + ".png")
    page.capture(path)
    assert path.read_bytes().startswith(b"\x89PNG")
