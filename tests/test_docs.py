"""The documents: links are valid, the map matches the code, and the API reference builds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from fresh_process import FreshProcess

import maskrcnn

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ALL_PAGES = sorted([*PAGES, *(ROOT / "docs" / "decisions").glob("*.md")])
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path):
    wrong = []
    for link in LINK.findall(without_code(page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong, f"{page.name} has links that lead nowhere: {wrong}"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    missing = [
        page.name
        for page in PAGES
        if page.parent == ROOT / "docs"
        and page.name != "index.md"
        and f"({page.name})" not in index
    ]
    assert not missing


def test_the_map_shows_the_rows_of_the_layer_test():
    from test_layers import LAYERS

    text = (ROOT / "docs" / "architecture.md").read_text()
    block = text.split("The same as text, top row first:", 1)[1].split("```")[1]
    drawn = [
        frozenset(re.split(r"\s{3,}", line.strip())[0].split())
        for line in block.strip().split("\n")
    ]
    assert drawn == [frozenset(row) for row in reversed(LAYERS)]


@pytest.mark.skipif(
    importlib.util.find_spec("pdoc") is None,
    reason="pdoc is not installed: pip install -e '.[docs]'",
)
def test_the_api_reference_builds_without_warnings_and_has_every_public_name(
    tmp_path: Path, fresh_process: FreshProcess
):
    # In a new process: conftest replaces annotations by checks of shapes.
    builder = str(ROOT / "docs" / "build_api.py")
    done = fresh_process.call("fresh_process:run_file", builder, str(tmp_path))
    assert done.status == 0, done.err
    assert not done.err
    page = (tmp_path / "maskrcnn.html").read_text()
    missing = [name for name in maskrcnn.__all__ if f'id="{name}"' not in page]
    assert missing in ([], ["__version__"])
