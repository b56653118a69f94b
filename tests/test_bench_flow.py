"""The benchmark of the data flow measures what it says. Sizes are tiny; nothing here judges speed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))
compare, flow, machine, memory, parts = map(import_module, ("compare", "flow", "machine", "memory", "parts"))


def made_up_results(*, quick: bool = False) -> dict:
    entries = [
        {
            "part": "fold",
            "what": "fit",
            "unit": "s",
            "measured": {"fit": [2.2, 2.3, 9], "read": [1, 1], "fold": [2, 2]},
        },
        {"part": "convert", "what": "list", "unit": "s", "measured": {"convert": [0.001], "memcpy": [1.0]}},
        {"part": "memory", "what": "peak", "unit": "B", "measured": {"long": [120e6], "short": [100e6]}},
    ]
    notes = [[], ["COPIED"], []]
    return {
        "machine": machine.describe(1),
        "options": {"runs": 3, "quick": quick},
        "entries": [entry | {"notes": note} for entry, note in zip(entries, notes, strict=True)],
    }


def test_the_ratio_is_of_medians_to_the_larger_of_the_others():
    found = [flow.ratio(entry) for entry in made_up_results()["entries"]]
    assert found == [pytest.approx(2.3 / 2), pytest.approx(0.001), pytest.approx(1.2)]


def test_the_table_says_what_was_reached():
    text = flow.render(made_up_results())
    lines = text.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["reached", "MISSED", "MISSED"]
    assert "fit 2.30 s, read 1.00 s, fold 2.00 s" in lines[1]
    assert "long 120 MB, short 100 MB" in lines[3]
    assert "mean nothing" not in text
    assert "mean nothing" in flow.render(made_up_results(quick=True))
    assert "MISSED" not in flow.render(made_up_results(quick=True))
    rows = [line for line in flow.render(made_up_results(), markdown=True).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [([], True), (["--quick"], True), (["--runs", "3", "--json", "x.json"], True), (["--flow", "--memory"], True)]
    + [([name, "x"], False) for name in ("--cases", "--methods", "--sketch-profile")]
    + [([name], False) for name in ("--memory", "--scaling")],
)
def test_the_data_flow_is_measured_unless_something_else_was_asked_for(arguments, wanted):
    assert compare.wants_flow(compare.parser().parse_args(arguments)) is wanted


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no part fold1 .* fold, convert, memory, checkpoint"):
        flow.main(["--flow", "fold1"])


@pytest.mark.parametrize("lists", [False, True])
def test_the_file_holds_the_rows_it_should_in_row_groups(tmp_path, lists):
    parts.write(tmp_path / "x.parquet", 50_010, 3, lists=lists)
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [50_000, 10]
    assert file.schema_arrow.types == ([pa.list_(pa.float32(), 3)] if lists else [pa.float32()] * 3)


@pytest.mark.slow
def test_a_child_tells_its_own_peak_and_not_that_of_its_parent(tmp_path):
    parts.write(tmp_path / "x.parquet", 100, 12, lists=False)
    first = memory.in_child(tmp_path / "x.parquet", threads=1, script=parts.__file__)["bytes"]
    held = bytearray(600_000_000)
    second = memory.in_child(tmp_path / "x.parquet", threads=1, script=parts.__file__)["bytes"]
    assert len(held) > 2 * second
    assert second < 1.1 * first


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end_and_leaves_nothing_behind(tmp_path):
    def call(*arguments: str) -> str:
        command = [sys.executable, str(BENCH / "flow.py"), *arguments]
        environment = machine.environment(1) | {"TMPDIR": str(tmp_path / "scratch")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "scratch").mkdir()
    text = call("--quick", "--runs", "1", "--json", str(tmp_path / "r.json"))
    results = json.loads((tmp_path / "r-flow.json").read_text())
    found = [entry["part"] for entry in results["entries"]]
    assert found == ["fold"] * 2 + ["convert"] * 3 + ["memory"] + ["checkpoint"] * 2
    assert all(min(values) > 0 for entry in results["entries"] for values in entry["measured"].values())
    assert results["entries"][4]["notes"][1] == "not copied"
    assert call("--read", str(tmp_path / "r.json")) == text
    assert list((tmp_path / "scratch").iterdir()) == []
    assert call("--scaling") == ""
