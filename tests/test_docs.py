"""The documents tell the truth: every ```python block runs, every local link leads somewhere.

A block that is not meant to run is marked ```py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_python_block_runs(document, tmp_path, monkeypatch):
    text = (ROOT / document).read_text()
    assert text.strip(), f"{document} is empty"
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "__main__"}
    for found in BLOCK.finditer(text):
        first_line = text.count("\n", 0, found.start(1))
        # Blank lines in front, so that a traceback points into the document.
        exec(compile("\n" * first_line + found[1], ROOT / document, "exec"), scope)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_lead_somewhere(document):
    path = ROOT / document
    targets = [target for target in LINK.findall(path.read_text()) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []
