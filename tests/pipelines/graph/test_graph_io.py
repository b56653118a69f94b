"""Files of factors: what is written is read, LightGCL's four tensors, folders that are mixed or are none."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamsvd.pipelines.graph import GraphSVD
from streamsvd.pipelines.graph.io import edge_batches, load_tensors, read_factors, write_factors
from streamsvd.pipelines.graph.synthetic import power_law


@pytest.fixture(scope="module")
def fresh() -> GraphSVD:
    g = GraphSVD(rank=4, regularise=0.5).update(power_law(60, 40, 400, communities=4))
    g.refresh()
    g.update({"user": [10**6], "item": [10**6]})
    g.refresh()
    return g


def test_factors_come_back_bit_for_bit(fresh, tmp_path):
    f = fresh.factors()
    back = read_factors(write_factors(f, tmp_path / "new" / "folder"))
    for name in ("s", "u", "v", "rotation", "item_scale", "u_mul_s"):
        assert np.array_equal(getattr(back, name), getattr(f, name)), name
    assert back.users.equals(f.users)
    assert back.version == f.version == 2


def test_the_files_are_as_documented(fresh, tmp_path):
    f = fresh.factors()
    write_factors(f, tmp_path)
    users, items = (pq.read_table(tmp_path / f"{side}_factors.parquet") for side in ("user", "item"))
    assert users.column_names == ["user", "row", "u", "us"]
    assert items.column_names == ["item", "row", "v", "vs", "scale"]
    assert users.schema.field("us").type == pa.list_(pa.float32(), 4)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    known = {
        "edges",
        "user_degrees",
        "item_degrees",
        "components_used",
        "captured_energy",
        "missing_energy_estimate",
        "version",
    }
    assert known | {"regularise", "tau_users", "tau_items", "participation_median", "alignment"} <= manifest.keys()
    assert manifest["edges"] == 401


def test_the_four_tensors_multiply_to_the_low_rank_graph(fresh, tmp_path):
    torch = pytest.importorskip("torch")
    f = fresh.factors()
    write_factors(f, tmp_path)
    u_mul_s, v_mul_s, ut, vt = load_tensors(tmp_path)
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (u_mul_s, v_mul_s, ut, vt))
    low_rank = u_mul_s @ vt
    assert torch.allclose(low_rank, (v_mul_s @ ut).T, atol=1e-6)
    s = torch.linalg.svdvals(low_rank.double())[:4]
    assert np.allclose(s, f.s, rtol=1e-5)


def test_files_of_different_versions_are_refused(fresh, tmp_path):
    write_factors(fresh.factors(), tmp_path)
    table = pq.read_table(tmp_path / "item_factors.parquet")
    pq.write_table(table.replace_schema_metadata({"version": "1"}), tmp_path / "item_factors.parquet")
    with pytest.raises(ValueError, match=r"files of versions 2, 1, 2 and a manifest of 2; read again"):
        read_factors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no manifest.json"):
        read_factors(tmp_path / "nowhere")


def test_edges_are_read_from_files_in_batches_with_ids(tmp_path):
    edges = power_law(60, 40, 400, communities=4)
    pq.write_table(edges.slice(0, 300).append_column("other", pa.array(np.zeros(300))), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(
        "user,item\n" + "\n".join(f"{r['user']},{r['item']}" for r in edges.slice(300).to_pylist())
    )
    found = list(edge_batches([str(tmp_path)], rows=128))
    assert [name for name, _ in found] == ["a.parquet:0", "a.parquet:128", "a.parquet:256", "b.csv:0"]
    g = GraphSVD(rank=4, regularise=0.5)
    for name, table in found + found:
        g.update(table, batch_id=name)
    assert g.state_.store.edges == 400
    with pytest.raises(FileNotFoundError, match=r"does not exist"):
        list(edge_batches(["nowhere.parquet"]))
