"""The documentation site: built strictly, complete, and without a request to another site."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import registry
from registry import aio
from tests import needs
from tests.documents import DOCUMENTS
from tests.tools import ROOT, environment

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "object": "data"}
"""Attribute of each element whose address the browser loads by itself; `link` stands aside."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """Addresses that a page loads, and the ids of its elements."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses and the id of an element."""
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        self.loaded.append(values.get(LOADED.get(tag, ""), ""))
        if tag == "link" and values.get("rel") not in {"canonical", "prev", "next"}:
            self.loaded.append(values.get("href", ""))


def test_site_is_built_without_a_warning(site: Path) -> None:
    """A page outside the navigation, and a link or section that does not exist, is a warning."""
    pages = {str(file.relative_to(site)) for file in site.rglob("*.html")}
    documents = {name.removeprefix("docs/") for name in DOCUMENTS} - {"README.md"}
    assert {name.replace(".md", ".html") for name in documents} <= pages


def test_pages_load_nothing_from_another_site(site: Path) -> None:
    """No font, style sheet, script or picture; style sheets and pictures load none either."""
    for file in site.rglob("*.html"):
        outside = [each for each in Page(file).loaded if each.startswith(("http", "//"))]
        assert not outside, (file, outside)
    for file in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"""(?:url\(|href=|src=)["']?(?:https?:)?//""", text), file
        assert "@import" not in text, file


def test_every_exported_name_has_a_place_in_the_reference(site: Path) -> None:
    """Errors are on a page of their own."""
    places = set[str]()
    for file in site.joinpath("reference").rglob("*.html"):
        places |= Page(file).ids
    errors = {name for name in registry.__all__ if name.endswith("Error")}
    expected = {f"registry.{name}" for name in set(registry.__all__) - errors}
    expected |= {f"registry.aio.{name}" for name in aio.__all__}
    assert {"registry.__version__"} == expected - places


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Yield the address of a server of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs.program("chromium")
@needs.program("chromedriver")
def test_search_finds_a_page_without_the_network(address: str, tmp_path: Path) -> None:
    """In a browser that resolves no name; the page of the reconcile is among the first results."""
    pytest.importorskip("selenium")
    from selenium import webdriver  # noqa: PLC0415 - it may be missing
    from selenium.webdriver.common.by import By  # noqa: PLC0415
    from selenium.webdriver.support.ui import WebDriverWait  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path}",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get(f"{address}/index.html?q=namespace%20replaced")
        browser.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").click()
        found = WebDriverWait(browser, 60).until(
            lambda page: page.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        )
        assert "reconcile.html" in " ".join(str(each.get_attribute("href")) for each in found)
