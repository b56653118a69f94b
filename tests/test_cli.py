"""The command line: what each command does, with good and bad input, and what it says and leaves behind."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamsvd as ss
from streamsvd.cli import main
from streamsvd.settings import Settings

D = 12
COMMANDS = ["demo", "fit", "transform", "merge", "inspect", "report"]


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, D)) * 0.6 ** np.arange(D) + 3.0).astype(np.float32)


def write(path: Path, X: np.ndarray) -> Path:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    names = pa.array([f"row {i}" for i in range(len(X))])
    pq.write_table(pa.table({"id": names, "embedding": lists, "age": np.ones(len(X))}), path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with two shards of one stream, in which every command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMSVD_DEBUG", raising=False)
    X = rows_of(700)
    write(tmp_path / "a.parquet", X[:400])
    write(tmp_path / "b.parquet", X[400:])
    columns = {"x": [1.0, 2.0, None, 4.0, 5.5], "y": [2.0, 1.0, 0.0, None, 7.0]}
    pq.write_table(pa.table(columns), tmp_path / "nulls.parquet")
    return tmp_path


@pytest.fixture
def model(folder) -> Path:
    path = folder / "model.svd"
    assert main(["fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding", "--out", str(path)]) == 0
    return path


@pytest.fixture
def values(capsys):
    """Runs a command with --json and returns the object that it printed."""

    def run(*tokens: str, code: int = 0) -> dict:
        capsys.readouterr()
        assert main([*tokens, "--json"]) == code
        said = capsys.readouterr().out
        return json.loads(said) if said else {}

    return run


def process(*tokens: str, code: str = "", **options) -> subprocess.CompletedProcess[str]:
    start = f"{code}\nimport sys; from streamsvd.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start, *tokens], capture_output=True, text=True, check=False, **options
    )


# --- help


def test_help_fits_one_screen_and_lists_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert [word for line in lines for word in COMMANDS if line.startswith(f"│ {word} ")] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_settings_are_the_options_of_fit_with_the_same_defaults():
    options = inspect.signature(ss.fit).parameters
    for field in dataclasses.fields(Settings):
        assert field.name in options
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        assert default == options[field.name].default, field.name


# --- fit


def test_fit_says_and_writes_what_the_library_returns(values):
    said = values("fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding", "--out", "m.svd")
    expected = ss.fit(["a.parquet", "b.parquet"], rank=3, select="embedding")
    held = ss.load("m.svd")
    np.testing.assert_array_equal(held.vt, expected.vt)
    assert held.names == expected.names
    assert said["rows"] == 700
    assert [part["s"] for part in said["components"]] == expected.s.tolist()
    assert said["bound"]["residual"] == expected.bound.residual > 0
    assert said["plan"]["kind"] == "gram"
    assert said["rows_per_second"] > 0


def test_fit_takes_every_option(values):
    options = ["--kind", "truncated", "--kept", "7", "--no-center", "--half-life", "100", "--dtype", "float64"]
    options += ["--weights", "age", "--rank", "2"]
    said = values("fit", "[ab].parquet", "--select", "embedding", *options)
    assert (said["state"], said["kept"], said["center"], said["rank"]) == ("truncated", 7, False, 2)
    assert said["decay"] == 0.5**0.01
    expected = ss.fit(
        ["a.parquet", "b.parquet"], rank=2, select="embedding", kind="truncated", kept=7, center=False, half_life=100.0,
        dtype="float64", weights="age",
    )  # fmt: skip
    assert [part["s"] for part in said["components"]] == expected.s.tolist()


def test_fit_without_out_writes_nothing(values, folder):
    before = sorted(folder.iterdir())
    values("fit", "a.parquet", "--rank", "2", "--select", "embedding")
    assert sorted(folder.iterdir()) == before


def test_columns_can_be_listed_with_commas_unless_a_name_has_them(values, folder):
    X = rows_of(50)
    pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "a,b": X[:, 2], "c": X[:, 3]}), folder / "t.parquet")
    assert values("fit", "t.parquet", "--rank", "1", "--select", "c,b")["names"] == ["c", "b"]
    assert values("fit", "t.parquet", "--rank", "1", "--select", "a,b")["names"] == ["a,b"]
    assert values("fit", "t.parquet", "--rank", "1", "--select", "a", "--select", "c")["names"] == ["a", "c"]


def test_fit_reads_arrays_without_names(values, folder):
    np.save(folder / "x.npy", rows_of(60))
    said = values("fit", "x.npy", "--rank", "2")
    assert (said["rows"], said["columns"], said["names"]) == (60, D, [])


def test_dropped_rows_are_counted_and_make_exit_code_3(values, capsys):
    said = values("fit", "nulls.parquet", "--rank", "1", "--nulls", "drop", "--out", "n.svd", code=3)
    assert (said["rows"], said["dropped"]) == (3, {"null": 2})
    assert ss.load("n.svd").rows == 3
    assert main(["fit", "nulls.parquet", "--rank", "1", "--nulls", "drop"]) == 3
    assert "2 of 5 rows were left out" in capsys.readouterr().err


def test_people_read_a_table_and_no_progress_bar_on_a_pipe(capsys):
    assert main(["fit", "a.parquet", "--rank", "2", "--select", "embedding", "--kind", "truncated"]) == 0
    text = capsys.readouterr()
    assert "certified interval" in text.out
    assert "residual at most" in text.out
    assert "4 rows kept" in text.out or "12 rows kept" in text.out
    assert text.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_a_progress_bar():
    import pty

    leader, follower = pty.openpty()
    start = "import sys; from streamsvd.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "fit", "a.parquet", "--rank", "2", "--select", "embedding"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as running:
        os.close(follower)
        seen = b""
        try:
            while chunk := os.read(leader, 4096):
                seen += chunk
        except OSError:  # Linux says so when the other side is closed
            pass
        assert running.wait() == 0
    os.close(leader)
    assert b"400 rows" in seen


# --- fit with a checkpoint

RUN = ["fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding", "--checkpoint", "run.svd"]


def test_a_run_that_is_finished_is_not_folded_again(values, capsys):
    first = values(*RUN, "--out", "m.svd")
    again = values(*RUN, "--out", "n.svd")
    assert (first["resumed_rows"], again["resumed_rows"]) == (0, 700)
    assert again["components"] == first["components"]
    assert Path("m.svd").read_bytes() == Path("n.svd").read_bytes()
    assert main(RUN) == 0
    assert "was finished already after 700 rows of run.svd" in capsys.readouterr().out


def test_a_checkpoint_is_a_model_with_the_names_of_its_columns(values, capsys):
    values(*RUN, "--out", "m.svd")
    of_model, of_run = values("inspect", "m.svd"), values("inspect", "run.svd")
    assert of_run["components"] == of_model["components"]
    assert of_run["names"] == of_model["names"] == [f"embedding[{i}]" for i in range(D)]
    assert (of_run["run"]["finished"], of_run["run"]["rows"], of_run["run"]["items"]) == (True, 700, 2)
    assert of_run["run"]["last"].endswith("b.parquet")
    assert of_run["run"]["settings"]["rank"] == 3
    for name in ("m", "run"):
        assert main(["transform", f"{name}.svd", "b.parquet", "--out", f"{name}.parquet"]) == 0
    assert pq.read_table("m.parquet")["scores"].equals(pq.read_table("run.parquet")["scores"])
    capsys.readouterr()
    assert main(["inspect", "run.svd"]) == 0
    said = capsys.readouterr().out
    for words in ("checkpoint 1, finished", "700 rows read of 2 items", "b.parquet"):
        assert words in said


def test_each_checkpoint_adds_a_line_of_metrics(values):
    values(*RUN, "--every", "100", "--metrics", "m.jsonl")
    lines = [json.loads(line) for line in Path("m.jsonl").read_text().splitlines()]
    assert len(lines) >= 2
    assert lines[-1]["rows"] == 700
    assert {"rows_per_second", "captured", "angle", "residual"} <= lines[-1].keys()
    assert 0 < lines[-1]["captured"] <= 1


def test_a_file_of_options_is_as_good_as_the_command_line(values, folder):
    (folder / "fit.toml").write_text('rank = 3\nselect = ["embedding"]\nkind = "truncated"\nhalf_life = 100\n')
    said = values("fit", "a.parquet", "b.parquet", "--config", "fit.toml")
    given = values(
        "fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding", "--kind", "truncated", "--half-life", "100"
    )  # fmt: skip
    assert said["components"] == given["components"]
    assert values("fit", "a.parquet", "--config", "fit.toml", "--rank", "2")["rank"] == 2


def test_one_state_for_each_key_is_fitted_shown_used_and_merged(values, folder, capsys):
    X = rows_of(90)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), D)
    pq.write_table(pa.table({"tenant": [f"[t]{i % 3}" for i in range(90)], "e": lists}), folder / "k.parquet")
    options = ["fit", "k.parquet", "--rank", "2", "--select", "e", "--by", "tenant"]
    said = values(*options, "--out", "k.svd")
    assert {part["key"]: part["rows"] for part in said["keys"]} == {"[t]0": 30, "[t]1": 30, "[t]2": 30}
    capsys.readouterr()
    assert main(["inspect", "k.svd"]) == 0
    assert "[t]2" in capsys.readouterr().out
    common = ["k.parquet", "--select", "e"]
    assert main(["transform", "k.svd", *common, "--key", "[t]1", "--out", "z.parquet"]) == 0
    alone = ss.fit(X[1::3], rank=2)
    scores = np.stack(pq.read_table("z.parquet")["scores"].to_pylist())
    np.testing.assert_allclose(scores, alone.transform(X), atol=1e-5)
    assert values("merge", "k.svd", "k.svd", "./k.svd", "--out", "kk.svd")["rows"] == 180
    values(*options, "--keys", "1", "--overflow", "spill", "--out", "spilled.svd")
    moved = values("inspect", "spilled.svd")
    assert [part["explained"] for part in moved["keys"]] == [part["explained"] for part in said["keys"]]


def test_rows_that_are_left_out_are_counted_by_reason_and_kept(values, folder, capsys):
    pq.write_table(pa.table({"x": [1.0, None, float("nan"), 4.0], "y": [0.0, 1.0, 2.0, 5.0]}), folder / "n.parquet")
    options = ["fit", "n.parquet", "--rank", "1", "--nulls", "drop", "--nonfinite", "drop"]
    said = values(*options, "--quarantine", "out", code=3)
    assert said["dropped"] == {"null": 1, "nonfinite": 1}
    assert said["seen"] == 4
    kept = pq.read_table("out")
    assert kept["row"].to_pylist() == [1, 2]
    capsys.readouterr()
    assert main([*options, "--quarantine", "out"]) == 3
    said = capsys.readouterr().err
    assert "2 of 4 rows were left out: 1 because of nulls, 1 because of NaN or infinity; they are in out" in said
    values("fit", "a.parquet", "--rank", "99", "--select", "embedding", "--quarantine", "out", code=2)
    assert pq.read_table("out").num_rows == 2  # what is refused before work leaves no trace
    filled = values("fit", "n.parquet", "--rank", "1", "--nulls", "mean", "--nonfinite", "mean")
    assert filled["filled"] == {"null": 1, "nonfinite": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_followed_folder_is_left_with_the_command_that_goes_on(folder, values, number, code):
    (folder / "in  coming").mkdir()
    (folder / "a.parquet").rename(folder / "in  coming" / "a.parquet")
    options = ["--rank", "3", "--select", "embedding", "--checkpoint", "run.svd", "--every", "10", "--metrics", "m"]
    words = ["fit", "--follow", "in  coming", *options]
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start += "\nimport sys; from streamsvd.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 60
        while not (Path("m").exists() and Path("m").read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(number)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == code
    assert said.splitlines()[-1].endswith(f"go on with: streamsvd {shlex.join(words)}")
    assert values("inspect", "run.svd")["rows"] == 400


def test_other_options_do_not_go_on_with_a_run(values, capsys):
    values(*RUN)
    before = Path("run.svd").read_bytes()
    assert main([*RUN, "--scale", "unit"]) == 1
    said = capsys.readouterr().err
    assert "no --scale became --scale unit" in said
    assert Path("run.svd").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(values, capsys):
    first = values(*RUN, "--every", "100")
    damaged = bytearray(Path("run.svd").read_bytes())
    damaged[-9] ^= 1
    Path("run.svd").write_bytes(damaged)
    capsys.readouterr()
    assert main([*RUN, "--json"]) == 0
    said = capsys.readouterr()
    assert "run.svd' is damaged" in said.err
    again = json.loads(said.out)
    assert again["components"] == first["components"]
    assert 0 < again["resumed_rows"] <= 700
    assert "damaged" in again["notes"][0]


def test_the_log_tells_of_checkpoints(capsys):
    assert main([*RUN, "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*RUN[:-1], "other.svd", "--json", "--log-level=info"]) == 0
    assert "streamsvd: 700 rows, " in capsys.readouterr().err


# --- report


def test_the_report_of_a_run_shows_its_drift_and_the_names(values, capsys):
    values(*RUN, "--every", "100")
    assert main(["report", "run.svd", "--out", "r.html"]) == 0
    assert "wrote r.html" in capsys.readouterr().out
    page = Path("r.html").read_text()
    for words in ("700 rows", "Drift", "Captured energy", "embedding[0]"):
        assert words in page
    said = values("report", "run.svd", "--out", "r.html")
    assert (said["out"], said["rows"]) == ("r.html", 700)


# --- transform


def test_ids_are_carried_through(model, values):
    values("transform", str(model), "b.parquet", "--ids", "id,age", "--out", "z.parquet")
    table = pq.read_table("z.parquet")
    assert table.column_names == ["id", "age", "scores"]
    assert table["id"].to_pylist() == [f"row {i}" for i in range(300)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_transform_writes_what_the_factors_return(model, values, suffix):
    said = values("transform", str(model), "b.parquet", "--out", f"z.{suffix}", "--residual", "--leverage")
    table = pq.read_table("z.parquet") if suffix == "parquet" else pa.ipc.open_file(f"z.{suffix}").read_all()
    factors, X = ss.load(model), rows_of(700)[400:]
    scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(scores, factors.transform(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table["residual"].to_numpy(), factors.residual(X), rtol=1e-4)
    np.testing.assert_allclose(table["leverage"].to_numpy(), factors.leverage(X), rtol=1e-4)
    assert (said["rows"], said["rank"], said["out"]) == (300, 3, f"z.{suffix}")


def test_transform_finds_the_columns_of_the_model_in_another_order(model, folder):
    table = pq.read_table("b.parquet")
    pq.write_table(table.select(["age", "embedding", "id"]), folder / "c.parquet")
    for name in ("b", "c"):
        assert main(["transform", str(model), f"{name}.parquet", "--out", f"z{name}.parquet", "--rank", "2"]) == 0
    zb, zc = pq.read_table("zb.parquet"), pq.read_table("zc.parquet")
    assert zb.schema.field("scores").type.list_size == 2
    assert zb.equals(zc)
    assert zb.num_rows == 300


def test_transform_drops_rows_and_says_so(folder, values):
    assert main(["fit", "nulls.parquet", "--rank", "1", "--nulls", "drop", "--out", "n.svd"]) == 3
    said = values("transform", "n.svd", "nulls.parquet", "--out", "z.parquet", "--nulls", "drop", code=3)
    assert (said["rows"], said["dropped"]) == (3, {"null": 2})
    assert pq.read_metadata("z.parquet").num_rows == 3


# --- merge, inspect


def test_merged_states_are_one_stream(values):
    for name in "ab":
        assert (
            main(["fit", f"{name}.parquet", "--rank", "3", "--select", "embedding", "--state", "--out", f"{name}.svd"])
            == 0
        )
    merged = values("merge", "a.svd", "b.svd", "--out", "ab.svd")
    whole = values("fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding")
    assert merged["rows"] == whole["rows"] == 700
    for one, other in zip(merged["components"], whole["components"], strict=True):
        assert one["s"] == pytest.approx(other["s"], rel=1e-6)
        assert one["lower"] <= other["s"] * (1 + 1e-6)
    assert values("inspect", "ab.svd")["components"] == merged["components"]
    assert main(["transform", "ab.svd", "a.parquet", "--select", "embedding", "--out", "z.parquet"]) == 0


def test_many_states_are_merged_by_a_pattern(values):
    parts = np.array_split(rows_of(700), 7)
    for i, part in enumerate(parts):
        ss.save(ss.sketch(columns=D, rank=3, kind="truncated").update(part), f"s{i}.svd")
    said = values("merge", "s?.svd", "s0.svd", "--out", "all.svd")
    assert (said["rows"], said["merged"]) == (700, 7)
    whole = ss.sketch(columns=D, rank=3, kind="truncated").update(rows_of(700)).factors()
    assert [part["s"] for part in said["components"]] == pytest.approx(whole.s.tolist(), rel=1e-3)


def test_inspect_says_the_same_of_a_state_and_of_its_factors(values):
    shared = ["fit", "a.parquet", "--rank", "3", "--select", "embedding", "--kind", "truncated", "--out"]
    assert main([*shared, "state.svd", "--state"]) == 0
    assert main([*shared, "factors.svd"]) == 0
    of_state, of_factors = values("inspect", "state.svd"), values("inspect", "factors.svd")
    assert (of_state["kind"], of_factors["kind"], of_factors["state"]) == ("truncated", "factors", "truncated")
    for name in ("rows", "columns", "rank", "kept", "plan", "bound", "components", "energy"):
        assert of_state[name] == of_factors[name], name


def test_inspect_shows_a_state_without_rows(folder, values, capsys):
    ss.save(ss.sketch(columns=5, rank=2), folder / "empty.svd")
    assert values("inspect", "empty.svd")["rows"] == 0
    assert main(["inspect", "empty.svd"]) == 0
    assert "no rows yet" in capsys.readouterr().out


# --- what goes wrong

FIT = ["fit", "a.parquet", "--select", "embedding", "--rank"]
WRONG = {
    "no such command": (["fitt"], 2, ["fitt"]),
    "no such option": ([*FIT, "2", "--krept", "9"], 2, ["--krept", "--help"]),
    "no data": (["fit", "--rank", "2"], 2, ["DATA"]),
    "no rank": (["fit", "a.parquet"], 2, ["--rank"]),
    "rank is no number": ([*FIT, "two"], 2, ["--rank", "two"]),
    "rank too large": ([*FIT, "13"], 2, ["--rank 13", "1 .. 12"]),
    "rank zero": ([*FIT, "0"], 2, ["--rank 0", "1 .. 12"]),
    "unknown kind": ([*FIT, "2", "--kind", "qr"], 2, ["qr", "gram", "truncated"]),
    "decay out of range": ([*FIT, "2", "--decay", "1.5"], 2, ["--decay 1.5"]),
    "half-life without unit": ([*FIT, "2", "--half-life", "soon"], 2, ["--half-life", "soon"]),
    "half-life without times": ([*FIT, "2", "--half-life", "30s"], 2, ["--half-life 30s", "--timestamps"]),
    "times without half-life": ([*FIT, "2", "--timestamps", "age"], 2, ["--timestamps age", "--half-life"]),
    "kept below rank": ([*FIT, "3", "--kept", "2"], 2, ["--kept 2", "--rank 3"]),
    "missing file": (["fit", "zz.parquet", "--rank", "2"], 2, ["zz.parquet", "does not exist"]),
    "empty pattern": (["fit", "zz*.parquet", "--rank", "2"], 2, ["zz*.parquet"]),
    "unknown suffix": (["fit", "model.txt", "--rank", "2"], 2, ["model.txt"]),
    "missing column": ([*FIT, "2", "--weights", "mass"], 2, ["'mass'", "'id', 'embedding', 'age'"]),
    "state without out": ([*FIT, "2", "--state"], 2, ["--out"]),
    "no folder to write to": ([*FIT, "2", "--out", "no/m.svd"], 2, ["no folder", "m.svd"]),
    "out is a folder": ([*FIT, "2", "--out", "."], 2, ["folder"]),
    "out is the input": ([*FIT, "2", "--out", "a.parquet"], 2, ["a.parquet", "another name"]),
    "text columns": (["fit", "a.parquet", "--rank", "2"], 1, ["'id' (string)", "--select embedding --select age"]),
    "nulls": (["fit", "nulls.parquet", "--rank", "1"], 1, ["column 'x' has 1", "column 'y' has 1", "--nulls drop"]),
    "NaN": (["fit", "nan.parquet", "--rank", "1"], 1, ["nan.parquet", "row 1", "NaN"]),
    "damaged data": (["fit", "damaged.parquet", "--rank", "1"], 1, ["damaged.parquet", "damaged"]),
    "no rows": (["fit", "empty.parquet", "--rank", "1"], 1, ["no rows", "empty.parquet"]),
    "model missing": (["inspect", "zz.svd"], 2, ["zz.svd"]),
    "model damaged": (["inspect", "damaged.svd"], 1, ["damaged.svd", "damaged"]),
    "model is something else": (["inspect", "a.parquet"], 1, ["a.parquet"]),
    "scores with a strange suffix": (["transform", "model.svd", "a.parquet", "--out", "z.txt"], 2, ["z.txt", ".parquet"]),
    "scores without out": (["transform", "model.svd", "a.parquet"], 2, ["--out"]),
    "scores replace the input": (["transform", "model.svd", "a.parquet", "--out", "a.parquet"], 2, ["a.parquet"]),
    "rank beyond the model": (["transform", "model.svd", "a.parquet", "--rank", "4", "--out", "z.parquet"], 2, ["--rank 4"]),
    "columns of the model missing": (["transform", "model.svd", "nulls.parquet", "--out", "z.parquet"], 2, ["'embedding'"]),
    "rows of another width": (
        ["transform", "model.svd", "nan.parquet", "--select", "x", "--out", "z.parquet"], 1, ["nan.parquet", "12"],
    ),
    "nothing to read": (["fit", "--rank", "2"], 2, ["DATA", "--follow"]),
    "reading and following": ([*FIT, "2", "--follow", "."], 2, ["DATA", "--follow"]),
    "following without a checkpoint": (["fit", "--follow", ".", "--rank", "2"], 2, ["--checkpoint"]),
    "following nothing": (["fit", "--follow", "no", "--rank", "2", "--checkpoint", "r.svd"], 2, ["'no'", "does not exist"]),
    "following with a model": (
        ["fit", "--follow", ".", "--rank", "2", "--checkpoint", "r.svd", "--out", "m.svd"], 2, ["m.svd", "r.svd is a model too"],
    ),
    "no name": (["fit", "", "--rank", "2"], 2, ["empty name"]),
    "out is the checkpoint": ([*FIT, "2", "--checkpoint", "r.svd", "--out", "./r.svd"], 2, ["--out", "--checkpoint", "two names"]),
    "checkpoint nowhere": ([*FIT, "2", "--checkpoint", "no/r.svd"], 2, ["no folder", "r.svd"]),
    "checkpoint is the input": ([*FIT, "2", "--checkpoint", "a.parquet"], 2, ["--checkpoint a.parquet", "another name"]),
    "checkpoint is a model": ([*FIT, "2", "--checkpoint", "model.svd"], 1, ["model.svd", "factors", "--checkpoint"]),
    "checkpoint is damaged": ([*FIT, "2", "--checkpoint", "damaged.svd"], 1, ["damaged.svd", "damaged"]),
    "every what": ([*FIT, "2", "--every", "often"], 2, ["--every often", "30s"]),
    "keep none": ([*FIT, "2", "--keep", "0"], 2, ["--keep 0"]),
    "metrics nowhere": ([*FIT, "2", "--metrics", "no/m"], 2, ["no folder"]),
    "quarantine suffix": ([*FIT, "2", "--quarantine", "q.txt"], 2, ["--quarantine q.txt", ".parquet"]),
    "unknown policy": ([*FIT, "2", "--nonfinite", "skip"], 2, ["skip", "mean"]),
    "key column missing": ([*FIT, "2", "--by", "tenant"], 2, ["'tenant'", "'id', 'embedding', 'age'"]),
    "too many keys": ([*FIT, "2", "--by", "id", "--keys", "5"], 1, ["--keys", "--overflow spill"]),
    "config missing": ([*FIT, "2", "--config", "no.toml"], 2, ["no.toml"]),
    "config damaged": ([*FIT, "2", "--config", "model.txt"], 2, ["model.txt", "TOML"]),
    "config with a strange option": (["fit", "a.parquet", "--config", "strange.toml"], 2, ["rnk", "strange.toml"]),
    "config without value": ([*FIT, "2", "--config"], 2, ["--config"]),
    "log level": ([*FIT, "2", "--log-level", "loud"], 2, ["loud", "info"]),
    "unknown scheme": (["fit", "s4://b/a.parquet", "--rank", "2"], 2, ["s4://"]),
    "ids missing": (["transform", "model.svd", "a.parquet", "--ids", "no", "--out", "z.parquet"], 2, ["'no'", "'id'"]),
    "key of a model without": (["transform", "model.svd", "a.parquet", "--key", "x", "--out", "z.parquet"], 2, ["--key x"]),
    "report suffix": (["report", "model.svd", "--out", "r.pdf"], 2, ["r.pdf", ".html"]),
    "report of nothing": (["report", "zz.svd", "--out", "r.html"], 2, ["zz.svd"]),
    "report without rows": (["report", "empty.svd", "--out", "r.html"], 2, ["empty.svd", "without rows"]),
    "pattern without states": (["merge", "q*.svd", "--out", "ab.svd"], 2, ["q*.svd"]),
    "merging one": (["merge", "a.svd", "--out", "ab.svd"], 2, ["two or more"]),
    "merging factors": (["merge", "model.svd", "a.svd", "--out", "ab.svd"], 2, ["model.svd", "--state"]),
    "merging what differs": (["merge", "a.svd", "narrow.svd", "--out", "ab.svd"], 1, ["narrow.svd", "columns"]),
}  # fmt: skip


@pytest.fixture
def wrong_files(folder, model):
    pq.write_table(pa.table({"x": [1.0, float("nan"), 2.0]}), folder / "nan.parquet")
    pq.write_table(pa.table({"x": pa.array([], pa.float64())}), folder / "empty.parquet")
    (folder / "damaged.parquet").write_bytes((folder / "a.parquet").read_bytes()[:900])
    damaged = bytearray(model.read_bytes())
    damaged[-5] ^= 1
    (folder / "damaged.svd").write_bytes(damaged)
    (folder / "model.txt").write_text("no model")
    (folder / "strange.toml").write_text("rnk = 2")
    ss.save(ss.sketch(columns=4, rank=3), folder / "empty.svd")
    ss.save(ss.sketch(columns=D, rank=3).update(rows_of(20)), folder / "a.svd")
    ss.save(ss.sketch(columns=4, rank=3).update(rows_of(20)[:, :4]), folder / "narrow.svd")
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_goes_wrong_is_one_sentence_and_changes_nothing(case, wrong_files, capsys):
    tokens, code, words = WRONG[case]
    before = {path: path.read_bytes() for path in wrong_files.iterdir()}
    capsys.readouterr()
    assert main(tokens) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("streamsvd: ")
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err
    assert {path: path.read_bytes() for path in wrong_files.iterdir()} == before


def test_debug_shows_the_traceback(capsys, monkeypatch):
    assert main(["inspect", "zz.svd", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("STREAMSVD_DEBUG", "1")
    assert main(["inspect", "zz.svd"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_named_and_fails(monkeypatch, capsys):
    monkeypatch.setattr("streamsvd.models.opened", lambda path: 1 / 0)
    assert main(["inspect", "a.svd"]) == 1
    said = capsys.readouterr().err
    assert "unexpected ZeroDivisionError" in said
    assert "--debug" in said


def test_rows_that_fail_late_leave_the_old_scores(model, folder, capsys):
    (folder / "z.parquet").write_bytes(b"old")
    X = rows_of(30)
    X[20, 3] = np.inf
    write(folder / "late.parquet", X)
    assert main(["transform", str(model), "a.parquet", "late.parquet", "--out", "z.parquet"]) == 1
    assert "late.parquet" in capsys.readouterr().err
    assert (folder / "z.parquet").read_bytes() == b"old"
    assert not list(folder.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_with_their_code_and_leave_nothing(model, folder, number, code):
    # Data that never comes, so that the command is certainly at work when the signal arrives.
    slow = """
import time, signal, streamsvd.flow.scores as scores
signal.signal(signal.SIGINT, signal.default_int_handler)
def endless(*_, **__):
    print("working", flush=True)
    while True:
        time.sleep(0.01)
    yield
scores.pieces = endless
"""
    start = f"{slow}\nimport sys; from streamsvd.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "transform", str(model), "a.parquet", "--out", "z.parquet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "working\n"
        time.sleep(0.05)
        running.send_signal(number)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == code
    assert said.count("\n") == 1
    assert "stopped" in said
    assert not (folder / "z.parquet").exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_traceback(model, form):
    read, wrote = os.pipe()
    os.close(read)
    start = "import sys; from streamsvd.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", start, "inspect", str(model), *form],
        stdout=wrote,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(wrote)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_installed_command_runs_without_warnings(model):
    done = process("inspect", str(model), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 700


# --- demo


@pytest.fixture
def small_photograph(monkeypatch):
    """A part of the photograph, so that the demo takes a second."""
    from streamsvd import demo

    part = demo.photograph()[100:160, 150:250]
    monkeypatch.setattr(demo, "photograph", lambda: part)
    return part


def test_the_demo_holds_its_certificate_to_the_truth(small_photograph, values, folder):
    said = values("demo", "--out", "shown")
    assert said["rows"] == 53 * 93
    assert said["holds"] is True
    assert len(said["components"]) == 8
    for part in said["components"]:
        assert 0 < part["lower"] <= part["truth"] <= part["upper"]
    assert 0 < said["true_residual"] <= said["bound"]["residual"]
    held = ss.load(said["files"]["model"])
    X = np.concatenate([np.asarray(batch) for batch in ss.batches(said["files"]["data"], select="patch")])
    assert X.shape == (53 * 93, 192)
    np.testing.assert_array_equal(X[94].reshape(8, 8, 3) * 255, small_photograph[1:9, 1:9].astype(np.float32))
    assert said["true_residual"] == pytest.approx(ss.verify.residual(X, held.vt, mean=held.mean))
    assert (folder / "shown" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in (folder / "shown").iterdir()) == [
        "china-patches.parquet",
        "demo.png",
        "demo.svd",
    ]


def test_the_demo_tells_people_and_fails_when_the_certificate_does(small_photograph, capsys, monkeypatch):
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    for words in ("8 of 8 true singular values", "rows/s", "out/demo.png", "inside", "explained"):
        assert words in said
    from streamsvd import demo

    monkeypatch.setattr(demo, "residual", lambda *_, **__: 1e9)
    assert main(["demo"]) == 1
    assert "does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["matplotlib", "sklearn"])
def test_the_demo_names_what_is_not_installed(module):
    hide = f"""
import importlib.util as util, sys
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == {module!r} else found(name, *rest)
"""
    done = process("demo", code=hide)
    assert done.returncode == 1
    assert 'pip install "streamsvd[demo]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_whole_photograph_gives_265860_patches(tmp_path):
    from streamsvd import demo

    assert demo.write_patches(tmp_path / "p.parquet") == 265_860
    assert pq.read_metadata(tmp_path / "p.parquet").num_rows == 265_860
