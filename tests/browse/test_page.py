"""The page of `browse` in a real browser: a click leads from each page to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from registry import Metadata, Store
from registry.browse import drawing
from tests import needs, node
from tests.browser import chromium, page, requested
from tests.tools import READY, pod

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [needs.program("chromium"), needs.program("chromedriver")]

EVIL = '<script>hacked = 1</script><img src=/x onerror="hacked=1">\u202egnp'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Return a Chromium with an empty profile."""
    with chromium(str(tmp_path_factory.mktemp("chromium"))) as driver:
        yield driver


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Return the address of the page of the registry of the documents, with a hostile sandbox."""
    path = str(tmp_path / "registry.db")
    node.build(path)
    with Store.open(path, reconcile=False) as store:
        evil = Metadata("evil'<b>", EVIL, pod(EVIL, EVIL, **{EVIL: EVIL}), runtime_handler=EVIL)
        store.add(evil, replace(READY, message=EVIL))
    with page(path) as (_, address):
        yield address


def click(browser: Chrome, text: str) -> None:
    """Follow the first link with *text*."""
    browser.find_element("partial link text", text).click()


def shown(browser: Chrome) -> str:
    """Return the text that the page shows."""
    return str(browser.find_element("tag name", "body").text)


def errors(browser: Chrome) -> list[str]:
    """Return what the console of the browser says, such as what the policy has refused."""
    return [str(entry["message"]) for entry in browser.get_log("browser")]


def test_clicks_lead_from_the_start_to_a_timeline(browser: Chrome, address: str) -> None:
    """By a facet, a question and a sandbox; no page asks another host, and no script fails."""
    requested(browser)
    browser.get(address)
    assert "7 NOTREADY" in shown(browser)
    click(browser, "All sandboxes")
    click(browser, "HostRebooted")
    assert '4 rows where reason = "HostRebooted"' in shown(browser)
    click(browser, "home")
    click(browser, "What is left to clean up?")
    assert "/run/netns/sr-web-1-1" in shown(browser)
    click(browser, "deadbeef0101")
    assert "Sandbox deadbeef0101" in shown(browser)
    assert "app.kubernetes.io/name=web" in shown(browser)
    bars = browser.find_elements("css selector", "svg.timeline rect")
    assert ["unknown", "ready", "notready"] == [bar.get_attribute("class") for bar in bars]
    titles = browser.find_elements("css selector", "svg.timeline g title")
    assert "NetNSClosed" in titles[2].get_attribute("textContent")
    click(browser, "Timeline of the node")
    assert "Timeline of the node" in shown(browser)
    asked = {each for each in requested(browser) if not each.startswith(("data:", "chrome"))}
    assert len(asked) > 6
    assert {address.partition("/-/")[0]} == {"/".join(each.split("/")[:3]) for each in asked}
    assert [] == errors(browser)


def test_the_timeline_of_a_past_day_links_to_its_sandboxes(browser: Chrome, address: str) -> None:
    """The bars of a sandbox have the order of its states."""
    browser.get(address)
    browser.get(f"{address.partition('/-/')[0]}/-/node?until=2026-03-01T18:00Z&hours=12")
    text = shown(browser)
    for reason in ("HostRebooted", "NetNSClosed", "ProcessExited", "Operator"):
        assert reason in text
    browser.find_element("css selector", "svg a[href='/-/sandbox/ba5eba11']").click()
    assert "Sandbox ba5eba11" in shown(browser)


def test_no_text_of_the_registry_becomes_a_script(browser: Chrome, address: str) -> None:
    """In any page that shows it; and characters that are not seen are shown as escapes."""
    browser.get(address)
    base = address.partition("/-/")[0]
    requested(browser)
    for where in (
        *("/registry/sandbox_overview", "/registry/labels", "/registry/sandboxes", "/-/node"),
        *("/registry/sandbox_history", "/registry/running", drawing.address("evil'<b>")),
    ):
        browser.get(base + where)
        assert "<script>hacked" in shown(browser), where
        assert "\\u202egnp" in shown(browser) or where == "/-/node", where  # it cuts names
        assert browser.execute_script("return typeof hacked") == "undefined", where
        assert "\u202e" not in browser.page_source
    assert not [each for each in requested(browser) if each.endswith("/x")]
    assert [] == errors(browser)


def test_a_query_of_ones_own_is_edited_and_run(browser: Chrome, address: str) -> None:
    """In Datasette's editor, whose scripts the policy lets run."""
    browser.get(address)
    click(browser, "SQL")
    browser.execute_script(
        "document.querySelector('.CodeMirror').CodeMirror.setValue("
        "'select count(*) as sandboxes from sandbox_overview')"
    )
    browser.find_element("css selector", "input[value='Run SQL']").click()
    assert "sandboxes\n13" in shown(browser)
    assert [] == errors(browser)
