"""A page in a real browser, by what a reader does with it."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait


def browser_or_skip() -> Chrome:
    """A browser without a window; where there is none, the test is skipped."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium to try the page in: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=Service(driver))


class Page:
    """A page of maps; those whose colours are read have pictures 60 pixels wide."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def cards(self) -> list[WebElement]:
        found = self.browser.find_elements(By.CSS_SELECTOR, ".card")
        return [card for card in found if card.is_displayed()]

    def card(self, name: str) -> WebElement:
        (found,) = (card for card in self.cards() if self.name(card) == name)
        return found

    def name(self, card: WebElement) -> str:
        return str(self.run("return arguments[0].querySelector('.name').textContent", card))

    def names(self) -> list[str]:
        return [self.name(card) for card in self.cards()]

    def slide(self, slider: WebElement, value: int) -> None:
        """With the keyboard, as far as it goes, and step by step from there."""
        slider.send_keys(Keys.END if value > 50 else Keys.HOME)
        steps = 100 - value if value > 50 else value
        slider.send_keys((Keys.ARROW_LEFT if value > 50 else Keys.ARROW_RIGHT) * steps)

    def choose(self, name: str, value: str) -> None:
        self.one(f"input[name={name}][value={value}]").click()

    def mixed(self, card: WebElement) -> tuple[float, str]:
        """How opaque a card's map is, and the filter of its picture."""
        return self.run(
            "const map = arguments[0].querySelector('.map'), image = map.parentElement.firstChild;"
            "return [Number(getComputedStyle(map).opacity), getComputedStyle(image).filter]",
            card,
        )

    def colour(self, card: WebElement, x: float, y: float) -> list[int]:
        """Of the map of a card, once it is painted, at a place in its picture's pixels."""
        script = (
            "const canvas = arguments[0].querySelector('canvas'), scale = canvas.width / 60;"
            "const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');"
            "copy.drawImage(canvas, 0, 0);"
            "const at = [arguments[1], arguments[2]].map((place) => Math.floor(place * scale));"
            "return [...copy.getImageData(...at, 1, 1).data]"
        )
        self.run("arguments[0].scrollIntoView({block: 'center'})", card)
        WebDriverWait(self.browser, 20).until(
            lambda _: self.run(
                "return (arguments[0].querySelector('canvas') || {}).width > 0", card
            )
        )
        return list(self.run(script, card, x, y))

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def media(self, kind: str = "", **features: str) -> None:
        pairs = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": kind, "features": pairs}
        )
