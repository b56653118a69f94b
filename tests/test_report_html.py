"""The HTML report: it needs nothing else, says what the factors say, cannot be broken by names, and a browser draws it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamsvd as ss
from streamsvd.charts import LEFT, RIGHT, TOP, Series, lines, scree
from streamsvd.report_html import largest_loadings, page, write_report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
X = np.random.default_rng(0).standard_normal((400, 12)) * 0.7 ** np.arange(12)
NASTY = "<script>alert('x')</script> & \"quoted\""
EVENTS = [
    {"rows": 100 * i, "captured": None if i == 1 else 0.9 + i / 1000, "angle": None if i == 1 else 0.1 / i,
     "residual": 0.05 + 0.1 / i, "estimate": None if i == 3 else 0.05 + 0.09 / i}
    for i in range(1, 9)
]  # fmt: skip
VOID = {"meta", "link", "br", "rect", "circle", "line", "path"}


class Checked(HTMLParser):
    """Reads a page and keeps its tags, its text, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.fetched += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def factors():
    names = (NASTY, *(f"sensor {j}" for j in range(1, 12)))
    return replace(ss.sketch(columns=12, rank=5, kind="truncated", kept=6).update(X).factors(), names=names)


def numbers(text: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_a_page_is_whole_and_fetches_nothing(factors):
    text = page(factors, title=NASTY, events=EVENTS, counts={"dropped": {"null": 3}, "filled": {}})
    read = Checked(text)
    assert read.fetched == []
    assert "script" not in read.tags
    assert "http" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme:dark" in text
    assert NASTY in read.text
    assert "3 rows left out (null)" in read.text


def test_a_page_says_what_the_factors_say(factors):
    text = Checked(page(factors)).text
    assert "400 rows" in text
    assert f"≤ {100 * factors.bound.relative:.2f} %" in text
    for s in factors.s:
        assert f"{s:.6g}" in text
    for j in range(5):
        for name, value in largest_loadings(factors, j):
            assert name in text
            assert f"{value:+.3f}" in text


def test_the_largest_loadings_are_the_largest(factors):
    for j in range(5):
        found = largest_loadings(factors, j, top=4)
        order = np.argsort(-np.abs(factors.vt[j]))[:4]
        assert [name for name, _ in found] == [factors.names[i] for i in order]
        assert [value for _, value in found] == factors.vt[j, order].tolist()
    assert largest_loadings(replace(factors, names=()), 0)[0][0].startswith("column ")


def test_an_interval_is_drawn_as_tall_as_it_is():
    parts = [
        {"s": 10.0, "lower": 10.0, "upper": 12.0},
        {"s": 5.0, "lower": 5.0, "upper": 11.0},
        {"s": 4.0, "lower": 4.0, "upper": 4.0},
    ]
    text = scree(parts)
    tops, heights = numbers(text, r'<rect[^>]* y="([\d.]+)"'), numbers(text, r'height="([\d.]+)" rx')
    points = numbers(text, r'cy="([\d.]+)"')
    unit = heights[0] / 2.0
    assert heights[1] == pytest.approx(6.0 * unit, abs=0.2)
    assert heights[2] == 1.5  # still to be seen
    for top, height, point in zip(tops[:2], heights[:2], points[:2], strict=True):
        assert point == pytest.approx(top + height, abs=0.2)  # the estimate is the lower end


def test_values_that_span_much_are_drawn_on_a_logarithmic_axis():
    text = scree([{"s": 10.0**-j} for j in range(7)])
    points = numbers(text, r'cy="([\d.]+)"')
    assert np.diff(points) == pytest.approx(np.full(6, np.diff(points)[0]), abs=0.2)


FLOATS = st.one_of(st.sampled_from([None, math.nan, math.inf]), st.floats(-1e300, 1e300), st.floats(0, 1))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**12), FLOATS), max_size=30))
def test_any_series_is_drawn_within_its_frame(points):
    points.sort(key=lambda p: p[0])
    text = lines("t", [Series("y", [p[0] for p in points], [p[1] for p in points])], x_name="rows", y_text=str)
    Checked(text)
    drawn = re.findall(r'<circle class="a" cx="([^"]+)" cy="([^"]+)"', text)
    finite = [p for p in points if p[1] is not None and math.isfinite(p[1])]
    assert len(drawn) == len(finite)
    for x, y in drawn:
        assert LEFT <= float(x) <= RIGHT
        assert TOP - 0.1 <= float(y) <= 186.1


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=200))
def test_any_spectrum_is_drawn_within_its_frame(s):
    text = scree([{"s": value} for value in sorted(s, reverse=True)])
    Checked(text)
    drawn = re.findall(r'cx="([^"]+)" cy="([^"]+)"', text)
    assert len(drawn) == len(s)
    for x, y in drawn:
        assert LEFT <= float(x) <= RIGHT
        assert TOP - 0.1 <= float(y) <= 186.1


@pytest.mark.parametrize("kind", ["gram", "truncated"])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e160])
def test_every_state_has_a_report(kind, scale):
    state = ss.sketch(columns=12, rank=12, kind=kind).update(X * scale)
    text = page(state, title="state")
    Checked(text)
    assert "nan" not in text.lower()
    assert "inf" not in re.sub(r"information", "", text.lower())


def test_a_state_without_rows_says_so():
    assert "no rows yet" in Checked(page(ss.sketch(columns=3, rank=2))).text


def test_a_run_with_one_event_has_its_charts(factors):
    for events in (EVENTS[:1], [{"rows": 5}]):
        read = Checked(page(factors, events=events))
        assert read.tags.count("svg") == 5
    assert Checked(page(factors)).tags.count("svg") == 2


def test_an_old_report_stays_when_the_new_one_cannot_be_written(factors, tmp_path, monkeypatch):
    write_report(factors, tmp_path / "r.html")
    old = (tmp_path / "r.html").read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="unchanged"):
        write_report(factors.truncate(rank=1), tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == old


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_without_a_sideways_scroll(factors, tmp_path, width):
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs headless Chromium, and none was found")
    # In a frame of this width, since some builds refuse windows as narrow as a phone; the script is the test's, not the page's.
    write_report(factors, tmp_path / "r.html", title="a model", events=EVENTS)
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" src="r.html" style="width:{width}px;height:800px;border:0"></iframe><script>'
        "onload=()=>{let d=document.getElementById('f').contentDocument.documentElement;"
        "document.title=[d.scrollWidth,d.querySelectorAll('svg').length,"
        "d.querySelector('svg').getBoundingClientRect().width>200].join()}</script>"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 40},900"]
    done = subprocess.run(
        [*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    found = re.search(r"<title>(\d+),(\d+),(\w+)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    assert int(found[1]) <= width
    assert (found[2], found[3]) == ("5", "true")
