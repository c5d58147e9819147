"""Hook of MkDocs: pages of the files outside docs/ that the documents link to.

A document links to the files of the project by relative paths, as GitHub and editors follow them:
`../examples/shim_threads.py`. The site has a page for each such file, and each link leads to it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT: Final = str(Path(__file__).resolve().parents[2])
LINK: Final = re.compile(r"(?<=\]\()([^)#:\s]+)")
"""The path in a link `[text](path#section)`."""
ERROR: Final = re.compile(r"^## (\w+Error)$", re.MULTILINE)
"""The heading of an error."""
AS_IT_IS: Final = (".md", ".svg", ".png")
"""Files that the site has as they are; any other file is shown in a code block."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a document, or such a page, links to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += [name for name in os.listdir(ROOT) if name.endswith(".md") and name != "README.md"]
    seen = set(waiting)
    for document in waiting:  # it grows
        if not document.startswith("docs/"):
            files.append(_file(document, config))
        if document.endswith(".md"):
            found = sorted({*_linked(document)} - seen)
            waiting += [each for each in found if not each.startswith("docs/")]
            seen.update(found)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page with its links to files of the project as links of the site."""
    del config
    uri = page.file.src_uri
    document = uri if os.path.exists(os.path.join(ROOT, uri)) else f"docs/{uri}"

    def replaced(link: re.Match[str]) -> str:
        target = _uri(_path(document, link[1]))
        if target not in files.src_uris:
            return link[1]
        return posixpath.relpath(target, posixpath.dirname(uri))

    markdown = LINK.sub(replaced, markdown)
    if uri == "errors.md":  # the reference of the calls links to these places
        markdown = ERROR.sub(r"[](){#registry.errors.\1}\n\n\g<0>", markdown)
    return markdown


def _linked(document: str) -> Iterator[str]:
    """Yield the path of each file that *document* links to, from the root of the project."""
    for target in LINK.findall(Path(ROOT, document).read_text(encoding="utf-8")):
        path = _path(document, target)
        if os.path.isfile(os.path.join(ROOT, path)):
            yield path


def _path(document: str, target: str) -> str:
    """Return the path, from the root of the project, to which *document* links as *target*."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), target))


def _uri(path: str) -> str:
    """Return the place on the site of the file at *path*."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(AS_IT_IS) else f"{path}.md"


def _file(path: str, config: MkDocsConfig) -> File:
    """Return the file at *path* as a file of the site."""
    absolute, uri = os.path.join(ROOT, path), _uri(path)
    if uri == path:
        return File.generated(config, uri, abs_src_path=absolute)
    code = Path(absolute).read_text(encoding="utf-8")
    language = {".py": "python"}.get(posixpath.splitext(path)[1], "text")
    content = f"# {posixpath.basename(path)}\n\n`{path}`\n\n````{language}\n{code}````\n"
    return File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
