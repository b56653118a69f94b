"""A state file gives back the same bits or refuses, by cause; what was there before survives whatever happens while writing."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from streamsvd import Gram, Truncated, fit, sketch
from streamsvd.flow import checkpoint, statefile
from streamsvd.flow.checkpoint import load, save

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
]


class Standin:
    """Any arrays and any values, as a state would hand them over."""

    def __init__(self, arrays, meta):
        self.arrays, self.meta = arrays, meta

    def parts(self):
        return self.arrays, self.meta

    @classmethod
    def from_parts(cls, arrays, meta):
        return cls(arrays, meta)


@pytest.fixture(autouse=True)
def standin_is_known(monkeypatch):
    monkeypatch.setitem(checkpoint.KINDS, "standin", Standin)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


def small() -> Standin:
    rng = np.random.default_rng(0)
    arrays = {
        "vt": rng.standard_normal((3, 5)),
        "s": np.arange(3, dtype=np.float32),
        "flags": np.array([True, False, True]),
    }
    return Standin(arrays, {"rows": 7, "weight": 0.1, "name": "naïve"})


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# Bit for bit


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    data = draw(st.binary(min_size=int(np.prod(shape)) * dtype.itemsize, max_size=int(np.prod(shape)) * dtype.itemsize))
    if dtype == np.bool_:
        data = bytes(byte & 1 for byte in data)
    array = np.frombuffer(data, dtype).reshape(shape)
    return (
        array[::-1]
        if array.ndim and draw(st.booleans())
        else np.asfortranarray(array)
        if draw(st.booleans())
        else array
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


@given(st.dictionaries(st.text(min_size=1, max_size=4), arrays(), max_size=4), VALUES)
def test_every_array_and_every_value_comes_back_bit_for_bit(temporary, held, meta):
    path = temporary / "any.svd"
    save(Standin(held, {"value": meta}), path)
    back = load(path)
    assert back.arrays.keys() == held.keys()
    assert all(same_bits(back.arrays[name], held[name]) for name in held)
    assert alike(back.meta["value"], meta)


def test_numbers_of_numpy_are_stored_as_what_they_are(tmp_path):
    meta = {
        "a": np.float32(0.1),
        "b": np.int64(2**62),
        "c": np.bool_(True),
        "d": (1, 2.5),
        "e": -math.inf,
        "f": math.nan,
        "g": -0.0,
        "h": 5e-324,
    }
    save(Standin({}, meta), tmp_path / "x.svd")
    back = load(tmp_path / "x.svd").meta
    assert alike(back, {**meta, "a": float(np.float32(0.1)), "b": 2**62, "c": True, "d": [1, 2.5]})


def test_byte_order_of_another_machine_is_turned(tmp_path):
    swapped = np.arange(5).astype(">f8")
    save(Standin({"x": swapped}, {}), tmp_path / "x.svd")
    np.testing.assert_array_equal(load(tmp_path / "x.svd").arrays["x"], np.arange(5.0))


def test_the_same_state_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        save(small(), tmp_path / name)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    turned = Standin(dict(reversed(small().arrays.items())), dict(reversed(small().meta.items())))
    save(turned, tmp_path / "c")
    assert first == (tmp_path / "c").read_bytes()


def test_loaded_arrays_belong_to_the_caller(tmp_path):
    save(small(), tmp_path / "x.svd")
    vt = load(tmp_path / "x.svd").arrays["vt"]
    vt[0, 0] = 17.0
    (tmp_path / "x.svd").write_bytes(b"")
    assert vt[0, 0] == 17.0
    assert np.isfinite(vt).all()


def test_any_reader_of_safetensors_sees_aligned_arrays_and_one_key(tmp_path):
    save(small(), tmp_path / "x.svd")
    with safe_open(tmp_path / "x.svd", framework="np") as content:
        assert set(content.metadata()) == {"streamsvd"}
        assert json.loads(content.metadata()["streamsvd"])["format"] == "streamsvd/1"
        np.testing.assert_array_equal(content.get_tensor("vt"), small().arrays["vt"])
    data = (tmp_path / "x.svd").read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    sizes = {"F64": 8, "F32": 4, "BOOL": 1}
    assert all(
        entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for name, entry in head.items() if name != "__metadata__"
    )


def test_the_reader_in_the_format_document_reads_a_state(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    scope: dict = {}
    exec(code, scope)
    state = sketch(columns=6, rank=2, center=True).update(np.random.default_rng(0).standard_normal((50, 6)))
    save(state, tmp_path / "x.svd")
    kind, meta, held = scope["read_state"](tmp_path / "x.svd")
    parts, _ = state.parts()
    assert kind == state.kind
    assert meta["options"]["columns"] == 6
    assert held.keys() == parts.keys()
    assert all(same_bits(held[name], np.asarray(parts[name])) for name in parts)
    data = bytearray((tmp_path / "x.svd").read_bytes())
    data[-1] ^= 1
    (tmp_path / "y.svd").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        scope["read_state"](tmp_path / "y.svd")


def names_in(value, arrays) -> set[str]:
    inside = [
        name
        for key in value
        for name in (names_in(value[key], {}) if isinstance(value[key], dict) and key != "work" else ())
    ]
    return {*value, *inside, *arrays} - {"gram", "truncated"}


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_the_format_document_names_everything_in_a_file(kind):
    from scipy import sparse

    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    named = {name for code in re.findall(r"`([^`\n]+)`", text) for name in re.findall(r"\w+", code)}
    rows = np.random.default_rng(0).standard_normal((300, 8))
    state = sketch(columns=8, rank=2, kind=kind, scale=np.full(8, 2.0)).update(rows).update(sparse.csr_array(rows[:1]))
    for obj in (state, state.factors()):
        arrays, meta = obj.parts()
        assert {name.replace("pending1_", "pending0_") for name in names_in(meta, arrays)} <= named


# Where arrays come back


def test_arrays_come_back_in_the_library_asked_for(tmp_path):
    torch = pytest.importorskip("torch")
    xp = pytest.importorskip("array_api_strict")
    save(small(), tmp_path / "x.svd")
    for options, kind in (
        ({"like": torch.empty(0)}, torch.Tensor),
        ({"device": "cpu"}, torch.Tensor),
        ({"like": xp.empty(0)}, type(xp.empty(0))),
    ):
        back = load(tmp_path / "x.svd", **options)
        assert all(isinstance(array, kind) for array in back.arrays.values())
        np.testing.assert_array_equal(np.asarray(back.arrays["vt"]), small().arrays["vt"])
        assert back.arrays["s"].shape == (3,)
    assert isinstance(load(tmp_path / "x.svd", like=np.empty(0)).arrays["vt"], np.ndarray)


def test_arrays_are_saved_from_the_library_they_are_in(tmp_path):
    torch = pytest.importorskip("torch")
    xp = pytest.importorskip("array_api_strict")
    for number, convert in enumerate((torch.asarray, xp.asarray)):
        held = {name: convert(array) for name, array in small().arrays.items()}
        save(Standin(held, small().meta), tmp_path / str(number))
        assert all(
            same_bits(load(tmp_path / str(number)).arrays[name], array) for name, array in small().arrays.items()
        )


@pytest.mark.parametrize(
    ("options", "kind", "pattern"),
    [
        ({"like": 3}, TypeError, "like is of type int"),
        ({"device": "warp"}, ValueError, "device='warp' is not a device that torch has here"),
        ({"like": np.empty(0), "device": "cpu"}, ValueError, "both like and device"),
    ],
)
def test_places_that_do_not_exist_are_refused(tmp_path, options, kind, pattern):
    if "device" in options:
        pytest.importorskip("torch")
    save(small(), tmp_path / "x.svd")
    with pytest.raises(kind, match=pattern):
        load(tmp_path / "x.svd", **options)


# Refusals


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "x.svd"
    kinds = dict(checkpoint.KINDS)
    checkpoint.KINDS["standin"] = Standin
    save(small(), path)
    checkpoint.KINDS.clear()
    checkpoint.KINDS.update(kinds)
    return path.read_bytes()


def test_a_flipped_bit_anywhere_is_refused(written, tmp_path):
    path = tmp_path / "x.svd"
    for place in range(len(written)):
        for bit in {place % 8, 5}:  # bit 5 turns e into E, which JSON reads as the same number
            data = bytearray(written)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"x\.svd' (is|was|holds) "):
                load(path)


def test_a_file_cut_short_anywhere_is_refused_as_such(written, tmp_path):
    path = tmp_path / "x.svd"
    for length in range(1, len(written)):
        path.write_bytes(written[:length])
        with pytest.raises(ValueError, match=r"was cut short"):
            load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        load(path)


@given(st.binary(min_size=1, max_size=64), st.integers(0, 10**6))
def test_bytes_added_or_overwritten_are_refused(written, temporary, extra, place):
    path = temporary / "overwritten.svd"
    place %= len(written) + 1
    for data in (
        written + extra,
        written[:place] + extra + written[place:],
        written[:place] + extra + written[place + len(extra) :],
    ):
        if data != written:
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"overwritten\.svd'"):
                load(path)


def foreign_files(folder):
    import pickle

    x = np.arange(100.0)
    save_file({"x": x}, folder / "safetensors", metadata={"format": "pt"})
    save_file({"x": x}, folder / "no metadata")
    np.save(folder / "npy.npy", x)
    np.savez(folder / "npz.npz", x=x)
    (folder / "pickle").write_bytes(pickle.dumps({"x": x}))
    (folder / "text").write_text("0.1,0.2\n" * 50)
    (folder / "json").write_text('{"kind": "gram", "format": "streamsvd/1"}' * 10)
    (folder / "zeros").write_bytes(bytes(1000))
    return sorted(folder.iterdir())


def test_files_of_other_programs_are_refused_as_such(tmp_path):
    for path in foreign_files(tmp_path):
        with pytest.raises(
            ValueError, match=r"is no state file of streamsvd|is a safetensors file without the key 'streamsvd'"
        ):
            load(path)


def rewritten(data: bytes, **changes) -> bytes:
    """Return a state file whose metadata was changed by somebody who knows the format, digest included."""
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    stored = {**json.loads(head["__metadata__"]["streamsvd"]), **changes, "digest": "0" * 64}
    head["__metadata__"]["streamsvd"] = json.dumps({key: value for key, value in stored.items() if value is not ...})
    header = json.dumps(head).encode()
    whole = len(header).to_bytes(8, "little") + header + data[8 + length :]
    return whole.replace(b"0" * 64, hashlib.blake2b(whole, digest_size=32).hexdigest().encode(), 1)


def test_a_newer_file_is_refused_with_the_version_it_needs(written, tmp_path):
    path = tmp_path / "x.svd"
    for version in (2, 17):
        path.write_bytes(rewritten(written, format=f"streamsvd/{version}"))
        with pytest.raises(
            ValueError, match=rf"written by a newer streamsvd \(format {version}, .*reads up to 1\); upgrade"
        ):
            load(path)


def test_keys_that_a_later_version_adds_are_passed_over(written, tmp_path):
    (tmp_path / "x.svd").write_bytes(rewritten(written, offset={"file": 3}))
    np.testing.assert_array_equal(load(tmp_path / "x.svd").arrays["vt"], small().arrays["vt"])


def test_a_kind_of_a_later_version_is_refused_by_name(written, tmp_path):
    (tmp_path / "x.svd").write_bytes(rewritten(written, kind="hologram"))
    with pytest.raises(
        ValueError, match=r"holds a 'hologram', which this version does not know .*gram, truncated, factors"
    ):
        load(tmp_path / "x.svd")


@pytest.mark.parametrize(
    "changes", [{"kind": ...}, {"meta": ...}, {"format": ...}, {"format": "other/1"}, {"format": 1}]
)
def test_metadata_without_what_it_needs_is_refused(written, tmp_path, changes):
    (tmp_path / "x.svd").write_bytes(rewritten(written, **changes))
    with pytest.raises(ValueError, match="is damaged: its header"):
        load(tmp_path / "x.svd")


def test_a_header_nested_without_end_is_refused(tmp_path):
    header = b'{"a":' * 100_000
    (tmp_path / "x.svd").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path / "x.svd")


def test_places_without_a_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.svd"):
        load(tmp_path / "gone.svd")
    with pytest.raises(IsADirectoryError, match="is a folder; name the state file in it"):
        load(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        save(small(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*create it first"):
        save(small(), tmp_path / "gone" / "x.svd")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
def test_files_that_may_not_be_touched_are_named(tmp_path):
    save(small(), tmp_path / "x.svd")
    (tmp_path / "x.svd").chmod(0)
    with pytest.raises(PermissionError, match=r"x\.svd"):
        load(tmp_path / "x.svd")
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*y\.svd"):
        save(small(), tmp_path / "y.svd")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("obj", "pattern"),
    [
        (3, "got int; expected a state"),
        (Standin({"x": np.array(["a"])}, {}), "'x' is of dtype <U1"),
        (Standin({"x": np.array([1j])}, {}), "'x' is of dtype complex128"),
        (Standin({"x": np.array([None])}, {}), "'x' is of dtype object"),
        (Standin({}, {"a": {"b": [1, b"x"]}}), r"meta\.a\.b\[1\] is of type bytes"),
        (Standin({}, {"a": {3: 1}}), r"meta\.a is of type dict"),
        (Standin({}, {"a": {"$float": 1}}), r"meta\.a is of type dict"),
        (Standin({}, {"a": np.ones(2)}), r"meta\.a is of type ndarray"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_and_the_old_file_stays(tmp_path, obj, pattern):
    save(small(), tmp_path / "x.svd")
    before = (tmp_path / "x.svd").read_bytes()
    with pytest.raises(TypeError, match=pattern):
        save(obj, tmp_path / "x.svd")
    assert (tmp_path / "x.svd").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.svd"]


# Writing


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource")
    save(small(), tmp_path / "x.svd")
    before = (tmp_path / "x.svd").read_bytes()
    large = Standin({"x": np.ones(1 << 17)}, {})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*x\.svd.*the file that was there is unchanged") as caught:
            save(large, tmp_path / "x.svd")
        with pytest.raises(OSError, match="nothing was written"):
            save(large, tmp_path / "new.svd")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "x.svd").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.svd"]
    save(large, tmp_path / "x.svd")
    assert load(tmp_path / "x.svd").arrays["x"].sum() == 1 << 17


@pytest.mark.parametrize("call", ["fsync", "fdopen"])
def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path, monkeypatch, call):
    save(small(), tmp_path / "x.svd")
    before = (tmp_path / "x.svd").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(statefile.os, call, full)
        with pytest.raises(OSError, match=r"No space left on device; the file that was there is unchanged"):
            save(small(), tmp_path / "x.svd")
    assert (tmp_path / "x.svd").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.svd"]


def test_a_process_killed_while_writing_leaves_one_whole_file(tmp_path):
    path = tmp_path / "x.svd"
    script = """
import sys, numpy as np
from streamsvd.flow import statefile
number = 0
while True:
    statefile.write(sys.argv[1], "standin", {"x": np.full(1 << 17, float(number))}, {"number": number})
    number += 1
    if number == 3:
        print("ready", flush=True)
"""
    for delay in (0.01, 0.033, 0.056):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
        back = load(path)
        assert back.meta["number"] >= 2
        assert (back.arrays["x"] == back.meta["number"]).all()


def test_others_may_read_the_file_as_they_may_read_any_other(tmp_path):
    save(small(), tmp_path / "x.svd")
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE((tmp_path / "x.svd").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_goes_on_pointing_at_the_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "latest.svd").symlink_to(tmp_path / "data" / "x.svd")
    save(small(), tmp_path / "latest.svd")
    assert (tmp_path / "latest.svd").is_symlink()
    np.testing.assert_array_equal(load(tmp_path / "data" / "x.svd").arrays["vt"], small().arrays["vt"])


# The real states


def stream(dtype):
    return np.random.default_rng(3).standard_normal((700, 20)).astype(dtype) / np.arange(1, 21, dtype=dtype) + 5


@pytest.mark.parametrize("kind", ["gram", "truncated"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seen", [0, 1, 200, 513])
def test_a_stream_that_goes_on_from_a_file_ends_in_the_same_bits(tmp_path, kind, dtype, seen):
    rows = stream(dtype)
    weights = np.random.default_rng(4).random(700) + 0.1
    state = sketch(columns=20, rank=3, kind=kind, decay=0.999).update(rows[:seen], weights=weights[:seen])
    save(state, tmp_path / "x.svd")
    back = load(tmp_path / "x.svd")
    assert type(back) is (Gram if kind == "gram" else Truncated)
    assert back.rows == seen
    ends = [half.update(rows[seen:], weights=weights[seen:]).factors() for half in (state, back)]
    for name in ("s", "vt", "mean"):
        assert same_bits(np.asarray(getattr(ends[0], name)), np.asarray(getattr(ends[1], name)))
    assert ends[0].bound.residual == ends[1].bound.residual > 0


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_sparse_rows_that_wait_are_saved_as_they_are(tmp_path, kind):
    from scipy import sparse

    S = sparse.random_array((90, 40), density=0.2, rng=np.random.default_rng(0), format="csr")
    state = sketch(columns=40, rank=3, kind=kind).update(S[:37])
    save(state, tmp_path / "x.svd")
    ends = [half.update(S[37:]).factors() for half in (state, load(tmp_path / "x.svd"))]
    assert same_bits(ends[0].vt, ends[1].vt)
    assert ends[1].s[0] > 0


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_factors_come_back_whole(tmp_path, kind):
    factors = fit(stream("float32"), rank=4, kind=kind)
    save(factors, tmp_path / "f.svd")
    back = load(tmp_path / "f.svd")
    for name in ("s", "vt", "mean"):
        assert same_bits(np.asarray(getattr(back, name)), np.asarray(getattr(factors, name)))
    assert (back.rows, back.weight, back.norm, back.names) == (
        factors.rows,
        factors.weight,
        factors.norm,
        factors.names,
    )
    assert back.bound.residual == factors.bound.residual > 0
    assert back.bound.spectral == factors.bound.spectral > 0
    np.testing.assert_array_equal(back.transform(stream("float32")), factors.transform(stream("float32")))


@pytest.mark.parametrize("kind", ["gram", "truncated"])
def test_a_torch_state_goes_on_in_torch(tmp_path, kind):
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(stream("float32"))
    state = sketch(columns=20, rank=3, kind=kind).update(rows[:333])
    save(state, tmp_path / "x.svd")
    back = load(tmp_path / "x.svd", like=rows)
    ends = [half.update(rows[333:]).factors() for half in (state, back)]
    assert isinstance(ends[1].vt, torch.Tensor)
    np.testing.assert_array_equal(ends[0].vt.numpy(), ends[1].vt.numpy())
    assert float(ends[1].s[0]) > 0
    in_numpy = load(tmp_path / "x.svd").update(rows[333:].numpy()).factors()
    np.testing.assert_allclose(in_numpy.s, ends[0].s.numpy(), rtol=1e-5)
