"""Screenshots of the page in docs/browse.md: `make screenshots` takes them again by Chromium."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from tests import node
from tests.browser import chromium, page

PICTURES: Final = Path(__file__).resolve().parents[1] / "pictures"
PAGES: Final = {
    "browse-start.png": "/",
    "browse-node.png": "/-/node?until=2026-03-01T18:00Z&hours=10.5",
    "browse-sandbox.png": "/-/sandbox/5ca1ab1e0002?until=2026-03-01T18:00Z",
    "browse-facets.png": "/registry/sandbox_overview?_col=pod&_col=state&_col=reason&_col=since",
}
"""Address of each screenshot."""
SIZE: Final = (1000, 800)


def main() -> None:
    """Take all screenshots."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "registry.db")
        node.build(path)
        with page(path) as (_, address), chromium(f"{folder}/chromium", *SIZE) as browser:
            browser.get(address)
            for name, where in PAGES.items():
                browser.get(address.partition("/-/")[0] + where)
                # The path of the temporary registry would differ in each picture.
                browser.execute_script(
                    "for (const path of document.querySelectorAll('.path'))"
                    " path.textContent = '/var/lib/shim/registry.db'"
                )
                browser.save_screenshot(str(PICTURES / name))


if __name__ == "__main__":
    main()
