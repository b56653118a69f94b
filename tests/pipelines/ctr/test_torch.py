from __future__ import annotations

import numpy as np
import pytest
from ctr_tables import vectors

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from streamsvd.pipelines.ctr import apply_to, compress_tables, mimic, quantize  # noqa: E402
from streamsvd.pipelines.ctr.embedding import CompressedEmbeddingBag, MergedLookup  # noqa: E402

RNG = np.random.default_rng(0)
SIZES = {"a": (100, 8), "b": (50, 6), "c": (60, 8)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding(100, 8, padding_idx=0)
        self.b = nn.EmbeddingBag(50, 6, mode="sum", padding_idx=2)
        self.c = nn.Embedding(60, 8)
        self.first = nn.ModuleDict({"c": nn.Embedding(60, 1)})
        for name in "bc":
            getattr(self, name).weight.data = torch.from_numpy(vectors(*SIZES[name], seed=ord(name)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(x).sum(1)


NET = Net()
TABLES = {name: getattr(NET, name).weight.detach().numpy() for name in "abc"}
COUNTS = {name: RNG.integers(1, 9, size[0]) for name, size in SIZES.items()}
INDEX = torch.tensor(RNG.integers(0, 50, 30))
OFFSETS = torch.tensor([0, 5, 5, 20])


def compressed(rank):
    return compress_tables(TABLES, COUNTS, rank=rank, keep_dense=False)


def test_full_rank_modules_answer_as_those_they_replace() -> None:
    new = apply_to(NET, compressed({"a": 8, "b": 6, "c": 8}))
    weights = torch.rand(30)
    for got, want in (
        (new.a(INDEX), NET.a(INDEX)),
        (new.b(INDEX, OFFSETS), NET.b(INDEX, OFFSETS)),
        (new.b(INDEX, OFFSETS, per_sample_weights=weights), NET.b(INDEX, OFFSETS, per_sample_weights=weights)),
        (new.b(INDEX.view(5, 6)), NET.b(INDEX.view(5, 6))),
        (new(INDEX.view(5, 6)), NET(INDEX.view(5, 6))),
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(new.first["c"].weight, NET.first["c"].weight)


def test_mean_bags_and_their_refusal_of_a_maximum() -> None:
    bag = nn.EmbeddingBag.from_pretrained(torch.from_numpy(TABLES["b"]), mode="mean")
    new = apply_to(
        nn.ModuleDict({"b": bag}), compress_tables({"b": TABLES["b"]}, {"b": COUNTS["b"]}, rank=6, keep_dense=False)
    )
    torch.testing.assert_close(new["b"](INDEX, OFFSETS), bag(INDEX, OFFSETS), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        CompressedEmbeddingBag(torch.zeros(3, 1), torch.zeros(1, 2), mode="max")


def test_a_patched_state_dict_loads_into_the_patched_model() -> None:
    result = compressed(3)
    new, state = apply_to(NET, result), apply_to(NET.state_dict(), result)
    new.load_state_dict(state)
    assert state["c.rows"].shape == (60, 3)
    assert "c.weight" not in state
    torch.testing.assert_close(
        new.c(INDEX).detach().numpy(), result["c"].reconstruct(INDEX.numpy()), atol=1e-6, rtol=1e-5
    )


def test_the_original_is_left_alone_and_dense_tables_are_not_copied() -> None:
    result = compress_tables({"c": TABLES["c"]}, {"c": COUNTS["c"]}, rank=2)
    before = NET.c.weight.clone()
    apply_to(NET, result).c.bias.data += 1.0
    assert torch.equal(NET.c.weight, before)
    assert isinstance(NET.c, nn.Embedding)


def test_the_merged_first_layer_equals_the_unmerged() -> None:
    new = apply_to(NET, compress_tables({"c": TABLES["c"]}, {"c": COUNTS["c"]}, rank=3))
    dense, linear = nn.Embedding(60, 5), nn.Linear(13, 7)
    index = torch.stack([INDEX, INDEX.flip(0)], dim=1)
    merged = MergedLookup([new.c, dense], linear)
    torch.testing.assert_close(
        merged(index), linear(torch.cat([new.c(index[:, 0]), dense(index[:, 1])], 1)), atol=1e-5, rtol=1e-5
    )
    assert merged.linear.in_features == 8
    with pytest.raises(ValueError, match="takes 13 numbers and the tables give 8"):
        MergedLookup([new.c], linear)


def test_a_table_with_padding_is_not_merged() -> None:
    new = apply_to(NET, compressed(3))
    with pytest.raises(ValueError, match="cannot be merged"):
        MergedLookup([new.a], nn.Linear(8, 2))


@pytest.mark.parametrize("rank", [2, 8])
def test_int8_rows_report_the_error_that_they_make(rank: int) -> None:
    one = compress_tables({"c": TABLES["c"]}, {"c": COUNTS["c"]}, rank=rank, keep_dense=False)["c"]
    small = quantize(one, COUNTS["c"])
    weights = COUNTS["c"] / COUNTS["c"].sum()
    error = weights @ ((TABLES["c"].astype(np.float64) - small.reconstruct()) ** 2).sum(axis=1) / one.energy
    assert small.error == pytest.approx(error, rel=1e-3, abs=1e-9)
    assert small.codes.dtype == np.int8
    module = apply_to(NET, {"c": small}).c
    torch.testing.assert_close(module(INDEX).detach().numpy(), small.reconstruct(INDEX.numpy()), atol=1e-5, rtol=1e-5)
    assert small.bytes_after < one.bytes_after


def test_wrong_models_are_refused_by_name() -> None:
    result = compress_tables({"z": TABLES["c"]}, {"z": COUNTS["c"]}, rank=2)
    with pytest.raises(ValueError, match=r"no table .*modules="):
        apply_to(NET, result)
    apply_to(NET, result, modules={"z": "c"})
    with pytest.raises(ValueError, match=r"shape \(60, 8\), and the model has \(100, 8\)"):
        apply_to(NET, result, modules={"z": "a"})
    ids = np.arange(60) + 5
    with pytest.raises(ValueError, match="not the row numbers"):
        apply_to(NET, compress_tables({"c": (ids, TABLES["c"])}, {"c": COUNTS["c"]}, rank=2))


def test_mimicking_lowers_the_difference() -> None:
    new = apply_to(NET, compress_tables({"c": TABLES["c"]}, {"c": COUNTS["c"]}, rank=4))
    new.c.bias.data += 0.5
    batches = [torch.from_numpy(np.random.default_rng(i).integers(0, 60, (64, 3))) for i in range(60)]
    losses = mimic(NET, new, batches, lr=1e-2)
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])
    with pytest.raises(ValueError, match="no parameter has 'nothing'"):
        mimic(NET, new, batches, only="nothing")


def test_mean_bags_leave_padding_out() -> None:
    bag = nn.EmbeddingBag.from_pretrained(torch.from_numpy(TABLES["b"]), mode="mean", padding_idx=2)
    result = compress_tables({"b": TABLES["b"]}, {"b": COUNTS["b"]}, rank=6, keep_dense=False)
    index = torch.tensor([[2, 5, 7], [2, 2, 2], [1, 2, 3]])
    torch.testing.assert_close(
        apply_to(nn.ModuleDict({"b": bag}), result)["b"](index), bag(index), atol=1e-5, rtol=1e-5
    )
