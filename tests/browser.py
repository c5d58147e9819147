"""The page of a registry in a process of its own, and a headless Chromium that looks at it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

import pytest

from tests.tools import environment, line

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


def of_page() -> dict[str, str]:
    """Return an environment for the page: Datasette never closes a connection of its import."""
    return environment() | {"PYTHONWARNINGS": "error,ignore::ResourceWarning"}


@contextmanager
def page(path: str, command: str = "browse --db") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve the page of the registry at *path*; yield its process and the address to open."""
    with subprocess.Popen(
        [sys.executable, "-m", "registry", *command.split(), path, "--port", "0"],
        env=of_page(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, line(process)
        finally:
            process.kill()


@contextmanager
def chromium(folder: str, width: int = 1200, height: int = 900) -> Iterator[Chrome]:
    """Start a Chromium that keeps its data in *folder*, and records each request."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for option in (*OPTIONS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(option)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get("about:blank")  # instead of the page of a new tab
        requested(driver)
        yield driver
    finally:
        driver.quit()


def requested(driver: Chrome) -> set[str]:
    """Return the addresses that the pages have requested since the last call."""
    entries: list[dict[str, Any]] = driver.get_log("performance")
    messages = [json.loads(entry["message"])["message"] for entry in entries]
    return {
        each["params"]["request"]["url"]
        for each in messages
        if each["method"] == "Network.requestWillBeSent"
    }


class Visitor:
    """A visitor of the page without a browser, who may have opened the address that was printed."""

    def __init__(self, address: str, *, enter: bool = True) -> None:
        """Visit the page at *address*; with the token that it contains if *enter*."""
        self.base = address.partition("/-/")[0]
        self.cookies = HTTPCookieProcessor()
        self._opener = build_opener(self.cookies)
        if enter:
            self._opener.open(address).close()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Return the status and the text of the answer to a request with *headers*."""
        try:
            with self._opener.open(Request(self.base + path, headers=headers)) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def query(self, sql: str) -> Any:
        """Return the answer to a query of the visitor's own, decoded."""
        return json.loads(self.get(f"/registry.json?{urlencode({'sql': sql})}")[1])
