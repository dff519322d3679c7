"""The page of many maps, in a browser."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Page, browser_or_skip
from PIL import Image
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from captum_krypton._command.page import PageEntry, number, write_page

RANDOM = np.random.default_rng(0)
NAN = float("nan")


def entry(name: str, label: str, numbers: tuple[float, float, float], **more: Any) -> PageEntry:
    """An image of 60 x 40 pixels; its map leaves 6 free at the left and 4 at the top."""
    heat = np.zeros((3, 4), np.float32)
    heat[1, 2], heat[2, 3] = numbers[1], -numbers[1] / 2
    values: dict[str, Any] = {
        "picture": RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        "heat": heat,
        "extent": (6.0, 54.0, 34.0, 4.0),
    }
    return PageEntry(name, label, *numbers, **{**values, **more})


ENTRIES = [
    entry("pets/tom-10.png", "tabby", (0.9, 0.40, 1.5)),
    entry("pets/tom-9.png", "tabby", (0.2, 0.10, 0.5), estimated_ssim=0.93),
    entry("wild/lion.png", "lion", (0.5, 0.80, 2.5)),
    entry("wild/Leopard.png", "leopard", (0.7, 0.05, 2.0)),
    entry("broken.png", "lion", (NAN, NAN, 0.1)),
]
ODD = [
    entry("<script>alert(1)</script>.png", "a \"quoted\" & <b>bold</b> 'class'", (0.5, 0.1, 1.0)),
    entry(
        '"><img src=x onerror=alert(1)>', "</option></select><script>alert(1)</script>", (1, 1, 1)
    ),
    entry("x" * 300, "y" * 300, (123456.7, 12345.6, 1234.5)),
    entry("wide.png", "tabby", (0.5, 0.1, 1.0), picture=np.zeros((9, 400, 3), np.uint8)),
]


Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    driver = browser_or_skip()
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: Chrome, tmp_path: Path) -> Iterator[Opener]:
    """Opens a page of entries; when the test is over, the browser has complained of nothing."""
    page = Page(browser)

    def opened(entries: list[PageEntry] = ENTRIES, title: str = "Maps") -> Page:
        path = tmp_path / "page.html"
        write_page(path, entries, title)
        browser.get(path.as_uri())
        return page

    page.resize(1280)
    page.media()
    yield opened
    assert browser.get_log("browser") == []
    assert page.run(
        "return performance.getEntriesByType('resource').map((r) => r.name.slice(0, 5))"
    ) in (
        [],
        ["data:"],
    )


ORDERS: dict[str, tuple[str, list[int]]] = {
    "order": ("First on top", [0, 1, 2, 3, 4]),
    "name": ("A to Z", [4, 1, 0, 3, 2]),  # 9 before 10, and capitals among the others
    "label": ("A to Z", [3, 2, 4, 0, 1]),
    "outcome": ("High on top", [0, 3, 2, 1, 4]),
    "drop": ("High on top", [2, 0, 1, 3, 4]),
    "seconds": ("High on top", [2, 3, 0, 1, 4]),
}
BACK: dict[str, tuple[str, list[int]]] = {
    "order": ("Last on top", [4, 3, 2, 1, 0]),
    "name": ("Z to A", [2, 3, 0, 1, 4]),
    "label": ("Z to A", [0, 1, 2, 4, 3]),
    "outcome": ("Low on top", [1, 2, 3, 0, 4]),  # what has no number stays last
    "drop": ("Low on top", [3, 1, 0, 2, 4]),
    "seconds": ("Low on top", [4, 1, 0, 3, 2]),
}


def test_sorting(show: Opener) -> None:
    page = show()
    direction = page.one("#direction")
    for key in ("seconds", "drop", "outcome", "label", "name", "order"):
        Select(page.one("#sort")).select_by_value(key)
        for words, places in (ORDERS[key], BACK[key]):
            assert direction.text == words
            assert page.names() == [ENTRIES[place].name for place in places], (key, words)
            direction.click()


def test_search(show: Opener) -> None:
    page = show()
    assert page.one("#count").text == "5 of 5 shown"
    page.one("#search").send_keys("LEO")
    assert page.names() == ["wild/Leopard.png"]
    assert page.one("#count").text == "1 of 5 shown"
    page.one("#search").send_keys("x")
    assert page.names() == [] and page.one("#nothing").is_displayed()
    assert page.one("#count").text == "0 of 5 shown"
    page.one("#all").click()
    assert len(page.names()) == 5 and not page.one("#nothing").is_displayed()


def test_filters(show: Opener) -> None:
    page = show()
    Select(page.one("#class")).select_by_visible_text("lion (2)")
    assert page.names() == ["wild/lion.png", "broken.png"]
    page.slide(page.one("#least"), 40)  # of 0.05 to 0.8
    assert page.one("#least-shown").text == page.one("#least").get_attribute("aria-valuetext")
    assert page.one("#least-shown").text == "0.35"
    assert page.names() == ["wild/lion.png"]
    Select(page.one("#class")).select_by_index(0)
    assert page.names() == ["pets/tom-10.png", "wild/lion.png"]
    page.one("#search").send_keys("tom")
    assert page.names() == ["pets/tom-10.png"]
    page.slide(page.one("#least"), 100)
    page.one("#search").send_keys(Keys.BACKSPACE * 3)
    assert page.names() == ["wild/lion.png"]
    page.one("#least").send_keys(Keys.HOME)
    assert len(page.names()) == 5 and page.one("#least-shown").text == "any"


def test_the_slider_of_one_image(show: Opener) -> None:
    page = show()
    card, other = page.cards()[:2]
    slider = card.find_element(By.CSS_SELECTOR, ".slide input")
    before = page.mixed(other)
    assert page.mixed(card) == before and before[0] == 1
    page.slide(slider, 20)
    assert page.mixed(card)[0] == pytest.approx(0.4)
    assert "contrast(1)" in page.mixed(card)[1]
    page.slide(slider, 0)
    assert page.mixed(card) == [0, "saturate(1) contrast(1) brightness(1)"]
    page.slide(slider, 100)
    assert page.mixed(card)[0] == 1 and "contrast(0) brightness(2)" in page.mixed(card)[1]
    assert page.mixed(other) == before


def test_the_slider_of_all(show: Opener) -> None:
    page = show()
    first = page.cards()[0].find_element(By.CSS_SELECTOR, ".slide input")
    page.slide(first, 90)
    page.slide(page.one("#mix"), 10)
    for card in page.cards():
        assert page.mixed(card)[0] == pytest.approx(0.2)
        slider = card.find_element(By.CSS_SELECTOR, ".slide input")
        assert slider.get_attribute("value") == "10"


LARGEST = (36, 19)  # the middle of the window with the largest drop
RISE = (48, 29)


def opacity(share: float) -> Any:
    return pytest.approx(255 * 0.92 * share, abs=1.5)


def test_scales(show: Opener) -> None:
    page = show()
    ends = [ends.text for ends in page.one("#class").parent.find_elements(By.CSS_SELECTOR, ".high")]
    assert ends[:4] == ["", "0.4", "0.1", "0.8"]
    for name in ("pets/tom-10.png", "wild/Leopard.png"):
        red, _, blue, opaque = page.colour(page.card(name), *LARGEST)
        assert red > 150 > blue and opaque == opacity(1)
        red, _, blue, opaque = page.colour(page.card(name), *RISE)
        assert red < 100 < blue and opaque == opacity(0.5)
    page.choose("scale", "shared")
    assert (
        page.one(".key .low").text == "down to −0.8" and page.one(".key .high").text == "up to 0.8"
    )
    for card in page.cards():
        assert card.find_element(By.CSS_SELECTOR, ".low").text == "−0.8"
        assert card.find_element(By.CSS_SELECTOR, ".high").text == "0.8"
    assert page.colour(page.card("pets/tom-10.png"), *LARGEST)[3] == opacity(0.5)
    assert page.colour(page.card("pets/tom-10.png"), *RISE)[3] == opacity(0.25)
    assert page.colour(page.card("wild/lion.png"), *LARGEST)[3] == opacity(1)
    page.choose("scale", "own")
    assert page.colour(page.card("pets/tom-10.png"), *LARGEST)[3] == opacity(1)
    assert page.one(".key .high").text == ""


def test_where_the_map_lies(show: Opener) -> None:
    page = show([entry("a", "b", (1, 1, 1), heat=np.array([[1, -1], [NAN, 0.5]], np.float32))])
    (card,) = page.cards()
    for x, y in ((3, 20), (57, 20), (30, 2), (30, 37)):
        assert page.colour(card, x, y)[3] == 0
    for x, y, share in ((7, 5, 1), (29, 18, 1), (31, 18, -1), (53, 33, 0.5)):
        red, _, blue, opaque = page.colour(card, x, y)
        assert opaque == opacity(abs(share)) and (red > blue) == (share > 0)
    for x, y in ((7, 33), (29, 20)):
        assert page.colour(card, x, y) == pytest.approx([128, 128, 128, 215], abs=1)
    assert page.one(".gap").is_displayed()


def test_a_map_drawn_smooth(show: Opener) -> None:
    page = show([entry("a", "b", (1, 1, 1), heat=np.array([[0, 1], [0, 1]], np.float32))])
    (card,) = page.cards()
    page.choose("drawn", "smooth")
    # The numbers stand at 18 and 42 of 60 pixels: between them it is a straight line.
    for x, share in ((8, 0), (18, 0), (24, 0.25), (30, 0.5), (36, 0.75), (42, 1), (53, 1)):
        assert page.colour(card, x, 19)[3] == pytest.approx(255 * 0.92 * share, abs=4)
    page.choose("drawn", "windows")
    assert page.colour(card, 29, 19)[3] == 0 and page.colour(card, 31, 19)[3] == opacity(1)


@pytest.mark.parametrize("script", [True, False])
def test_names_do_no_harm(script: bool, show: Opener, browser: Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    try:
        page = show(ODD, title="</title><script>alert(1)</script>")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert
    assert page.names() == [odd.name for odd in ODD]
    assert browser.title == "</title><script>alert(1)</script>"
    assert page.run("return document.scripts.length") == 1
    assert len(browser.find_elements(By.CSS_SELECTOR, ".card b, [src=x], [onerror]")) == 0
    if script:
        for odd in ODD[:2]:
            (option,) = (
                option
                for option in Select(page.one("#class")).options
                if option.get_attribute("value") == odd.label
            )
            option.click()
            assert page.names() == [odd.name]


def test_an_image_enlarged(show: Opener, browser: Chrome) -> None:
    page = show()
    button = page.card("wild/lion.png").find_element(By.CSS_SELECTOR, ".enlarge")
    assert button.accessible_name == "Enlarge wild/lion.png"
    button.send_keys(Keys.ENTER)
    dialog, view, reading = page.one("#large"), page.one("#view"), page.one("#reading")
    assert dialog.is_displayed() and dialog.accessible_name == "wild/lion.png"
    assert dialog.find_element(By.CSS_SELECTOR, ".label").text == "lion"
    assert [each.text for each in dialog.find_elements(By.CSS_SELECTOR, "dd")] == [
        "0.5",
        "0.8",
        "2.5 s",
    ]
    assert view.find_element(By.CSS_SELECTOR, "img").get_attribute("naturalWidth") == "60"
    view.send_keys(Keys.ARROW_RIGHT)  # the first key goes to the middle
    assert reading.text == "0 with the window in row 2 of 3, column 2 of 4"
    view.send_keys(Keys.ARROW_RIGHT)
    assert reading.text == "0.8 with the window in row 2 of 3, column 3 of 4"
    view.send_keys(Keys.ARROW_DOWN + Keys.ARROW_RIGHT * 5)
    assert reading.text == "−0.4 with the window in row 3 of 3, column 4 of 4"
    page.one("#next").click()
    assert dialog.accessible_name == "wild/Leopard.png" and "arrow keys" in reading.text
    for _ in range(2):
        page.one("#next").click()
    assert dialog.accessible_name == "pets/tom-10.png"
    page.one("#previous").click()
    assert dialog.accessible_name == "broken.png"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    WebDriverWait(browser, 20).until(lambda _: not dialog.is_displayed())
    focused = browser.switch_to.active_element
    assert focused.accessible_name == "Enlarge broken.png"


def test_reading_with_a_pointer(show: Opener, browser: Chrome) -> None:
    page = show()
    page.card("wild/lion.png").find_element(By.CSS_SELECTOR, ".frame").click()
    assert page.one("#large").is_displayed()
    box = page.run(
        "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width]",
        page.one("#view"),
    )
    left, top, side = box  # the picture is 60 x 40: free above and below
    for (x, y), said in (
        (LARGEST, "0.8 with the window in row 2 of 3, column 3 of 4"),
        (RISE, "−0.4 with the window in row 3 of 3, column 4 of 4"),
        ((2, 20), "Point at the image"),
    ):
        place = {"x": left + x / 60 * side, "y": top + (y + 10) / 60 * side}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", **place})
        WebDriverWait(browser, 20).until(lambda _, said=said: said in page.one("#reading").text)
    page.one("#close").click()
    assert not page.one("#large").is_displayed()


@pytest.mark.parametrize("width", [320, 640, 800, 1024, 1280, 1920])
def test_no_page_is_too_wide(width: int, show: Opener) -> None:
    page = show(ODD + ENTRIES, title="z" * 200)
    page.resize(width)
    assert page.run("return innerWidth") == width
    root = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
    assert page.run(root) == 0
    wide = (
        "return [...document.querySelectorAll('main *, dialog *')].filter((e) => "
        "!e.closest('svg') && e.clientWidth && e.scrollWidth > e.clientWidth + 1 && "
        "!['INPUT', 'SELECT'].includes(e.tagName)).map((e) => e.outerHTML.slice(0, 200))"
    )
    assert page.run(wide) == []
    page.card("x" * 300).find_element(By.CSS_SELECTOR, ".enlarge").send_keys(Keys.ENTER)
    assert (
        page.run("const d = document.querySelector('#large'); return d.scrollWidth - d.clientWidth")
        == 0
    )
    assert page.run(wide) == []


CONTRAST = """
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  const colour = getComputedStyle(e).backgroundColor;
  return colour === "rgba(0, 0, 0, 0)" ? behind(e.parentElement) : colour;
};
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const texts = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!texts || !e.checkVisibility() || e.closest("svg, :disabled, option")) continue;
  const pair = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((a, b) => b - a);
  found.push([(pair[0] + 0.05) / (pair[1] + 0.05), e.outerHTML.slice(0, 80)]);
}
return [luminance(getComputedStyle(document.body).backgroundColor), found];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, show: Opener) -> None:
    page = show()
    page.media(prefers_color_scheme=scheme)
    ground, texts = page.run(CONTRAST)
    assert ground < 0.05 if scheme == "dark" else ground > 0.8
    assert len(texts) > 50
    assert [text for text in texts if text[0] < 4.5] == []


def test_without_a_script(show: Opener, browser: Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = show()
        box = page.run(
            "const b = document.querySelector('.frame').getBoundingClientRect();"
            "return [b.x, b.y, b.width]"
        )
        seen = BytesIO(b64decode(browser.get_screenshot_as_base64()))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert page.one("noscript .note").is_displayed()
    assert not page.one(".tools").is_displayed()
    assert len(page.names()) == 5
    made = ".card button, .card input, .card canvas"
    assert browser.find_elements(By.CSS_SELECTOR, made) == []
    left, top, side = box
    pixels = np.asarray(Image.open(seen).convert("RGB")).astype(int)
    x, y = LARGEST
    red, _, blue = pixels[int(top + (y + 10) / 60 * side), int(left + x / 60 * side)]
    assert red > blue + 60


def test_every_control_has_a_name(show: Opener, browser: Chrome) -> None:
    page = show()
    page.cards()[0].find_element(By.CSS_SELECTOR, ".enlarge").send_keys(Keys.ENTER)
    roles: dict[str, list[str]] = {}
    for opened in (True, False):
        if not opened:
            page.one("#close").click()
        for node in browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]:
            if not node["ignored"]:
                name = node.get("name", {}).get("value", "")
                roles.setdefault(node["role"]["value"], []).append(name)
    for role in ("button", "combobox", "radio", "searchbox", "slider"):
        assert roles[role] and "" not in roles[role], role
    assert "From image to map, pets/tom-10.png" in roles["slider"]
    assert {"own", "shared", "windows", "smooth"} <= set(roles["radio"])


def test_printed(show: Opener, browser: Chrome) -> None:
    page = show()
    page.media("print", prefers_color_scheme="dark")
    for selector in (".tools", ".slide", ".enlarge"):
        assert not page.one(selector).is_displayed()
    ground, texts = page.run(CONTRAST)
    assert ground == 1 and [text for text in texts if text[0] < 4.5] == []
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert (
        page.run(
            "return [...document.querySelectorAll('canvas.map')].filter((c) => c.width).length"
        )
        >= 5
    )


def test_a_page_of_many(show: Opener) -> None:
    many = [replace(ENTRIES[0], name=f"{n}.png") for n in range(300)]
    page = show(many)
    assert page.one("#count").text == "300 of 300 shown"
    painted = "return [...document.querySelectorAll('.card canvas')].filter((c) => c.width).length"
    assert 0 < page.run(painted) < 60
    first = page.run("return document.querySelector('.card canvas')")
    last = page.run("return document.querySelector('.card:last-child')")
    assert page.colour(last, *LARGEST)[3] == opacity(1)
    assert 0 < page.run(painted) < 60
    assert page.run("return arguments[0].width", first) == 0  # it is far now


def test_no_images(show: Opener) -> None:
    page = show([])
    assert page.one(".none").text == "This report holds no images."
    assert not page.one(".tools").is_displayed() and not page.one("footer").is_displayed()


@pytest.mark.parametrize("others", [[], [replace(ENTRIES[4], heat=np.full((2, 2), NAN))]])
def test_maps_without_a_number(others: list[PageEntry], show: Opener) -> None:
    page = show([ENTRIES[4], *others])
    page.choose("scale", "shared")
    assert page.one(".card .high").text == "0"
    assert not page.one("#least").is_enabled()
    assert len(page.names()) == 1 + len(others)


def test_numbers_are_written_as_in_the_list(show: Opener) -> None:
    page = show()
    values = [
        0.0,
        0.5,
        -0.12345,
        12.3456,
        99.96,
        999.6,
        1234.6,
        -45678.9,
        2.5e7,
        1e6,
        1.234e-5,
        0.0001,
    ]
    values += [0.00009996, 9.9996]
    assert page.run("return arguments[0].map(short)", values) == [number(v) for v in values]
    assert page.run("return [NaN, Infinity].map(short)") == [number(NAN)] * 2
