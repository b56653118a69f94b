"""What users hold becomes an operator: edge tables of any ids, torch's sparse matrices, cuSPARSE on a GPU."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from streamsvd.adaptors import edge_matrix
from streamsvd.operators import as_operator
from streamsvd.randomized import svd


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_edges_of_any_ids_become_a_matrix(kind, chunks):
    base = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    ids = pa.array([30, 10, 20, 10, 30, 30]).cast(base)
    table = pa.table(
        {"user": ids.cast(kind), "item": pa.array(["b", "a", "b", "c", "a", "b"]), "w": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    )
    table = pa.concat_tables([table.slice(i * 6 // chunks, 6 // chunks) for i in range(chunks)])
    edges = edge_matrix(table)
    assert [str(x) for x in edges.rows.to_pylist()] == ["10", "20", "30"]
    assert edges.columns.to_pylist() == ["a", "b", "c"]
    assert np.array_equal(edges.matrix.toarray(), [[2, 0, 4], [0, 3, 0], [5, 7, 0]])


def test_edges_without_weights_count_and_columns_may_be_named():
    table = pa.table({"t": [0.5, 0.5], "i": [1, 1], "u": [2, 2]})
    edges = edge_matrix(table, row="u", column="i")
    assert edge_matrix(pa.table({"u": [1, 1, 2], "i": [1, 1, 1]})).matrix.toarray().tolist() == [[2.0], [1.0]]
    assert edges.matrix.shape == (1, 1)


def test_svd_takes_a_table_of_edges():
    A = sp.random_array((40, 30), density=0.3, rng=np.random.default_rng(0)).tocoo()
    table = pa.table({"u": A.coords[0], "i": A.coords[1], "w": A.data})
    rows, columns = np.unique(A.coords[0]), np.unique(A.coords[1])
    want = np.linalg.svd(A.toarray()[rows][:, columns], compute_uv=False)[:4]
    np.testing.assert_allclose(svd(table, 4).s, want, rtol=1e-10)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"u": [1, None, 3], "i": [1, 2, 3]}, r"'u' has 1 null ids, the first in row 1"),
        (
            {"u": [1, 2], "i": [1, 2], "w": [1.0, float("nan")]},
            r"'w' has 1 weights that are not finite, the first in row 1",
        ),
        ({"u": [1, 2]}, "1 columns"),
    ],
)
def test_bad_edges_are_refused_with_their_row(table, words):
    with pytest.raises(ValueError, match=words):
        edge_matrix(pa.table(table))


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column 'user'"):
        edge_matrix(pa.table({"u": [1], "i": [2]}), row="user")


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_torch_is_taken(layout):
    torch = pytest.importorskip("torch")
    A = np.random.default_rng(1).standard_normal((20, 15)).astype(np.float32) * (
        np.random.default_rng(2).random((20, 15)) < 0.4
    )
    op = as_operator(getattr(torch.from_numpy(A), layout)())
    assert op.dtype == "float32"
    np.testing.assert_allclose(op.matmat(np.eye(15, dtype=np.float32)), A, rtol=1e-6)


@pytest.mark.cuda
def test_cusparse_certifies_the_same():
    cupy = pytest.importorskip("cupy")
    from cupyx.scipy.sparse import csr_matrix

    A = sp.random_array((500, 300), density=0.05, rng=np.random.default_rng(3), dtype=np.float32).tocsr()
    f, want = svd(csr_matrix(sp.csr_matrix(A)), 5), svd(A, 5)
    assert isinstance(f.vt, cupy.ndarray)
    np.testing.assert_allclose(f.s.get(), want.s, rtol=1e-4)
    assert f.bound.residual == pytest.approx(want.bound.residual, rel=1e-4)
