"""The cache: computed once, whole or not at all, and read back as it was."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffalign import cache

IDS = [f"image{n}" for n in range(7)]


class Counter:
    """Computes two arrays per id and remembers how it was asked."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.asked: list[list[str]] = []
        self.dtype = dtype

    def __call__(self, ids: Sequence[str]) -> dict[str, Tensor]:
        self.asked.append(list(ids))
        numbers = torch.tensor([float(IDS.index(i)) for i in ids], dtype=self.dtype)
        return {"latents": numbers[:, None, None].expand(-1, 2, 3) + 0.1, "mask": torch.ones(len(ids), 4).long()}


def fill(place: Path, compute: Counter, key: dict[str, object] | None = None, ids: Sequence[str] = IDS) -> cache.Store:
    return cache.fill(place / "store", key or {"model": "m"}, ids, compute, lambda i: cache.cut(i, 3))


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    compute = Counter()
    store = fill(tmp_path, compute)
    assert compute.asked == [IDS[:3], IDS[3:]], "a last batch of one would be rounded otherwise"
    found = store.rows(["image5", "image0", "image5"])
    assert set(found) == {"latents", "mask"}
    assert torch.equal(found["latents"][:, 0, 0], torch.tensor([5.1, 0.1, 5.1]))
    assert found["latents"].shape == (3, 2, 3)
    assert found["mask"].dtype == torch.float32
    found["latents"] += 1
    assert torch.equal(store.rows(["image0"])["latents"][0, 0], torch.full((3,), 0.1)), "rows are copies"
    with pytest.raises(KeyError):
        store.rows(["nothing"])


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    first = fill(tmp_path, Counter()).rows(IDS)
    again = Counter()
    second = fill(tmp_path, again).rows(IDS)
    assert not again.asked
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_another_key_or_other_ids_are_computed_anew(tmp_path: Path) -> None:
    fill(tmp_path, Counter())
    for key, ids in (({"model": "n"}, IDS), ({"model": "n"}, IDS[:4]), ({"model": "n"}, IDS[3::-1])):
        compute = Counter()
        store = fill(tmp_path, compute, key, ids)
        assert sum(compute.asked, []) == list(ids)
        assert store.rows(ids)["latents"].shape[0] == len(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_float64_stays_and_everything_else_is_float32(tmp_path: Path) -> None:
    assert fill(tmp_path / "a", Counter(torch.float64)).rows(IDS)["latents"].dtype == torch.float64
    assert fill(tmp_path / "b", Counter(torch.bfloat16)).rows(IDS)["latents"].dtype == torch.float32


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(Counter):
        def __call__(self, ids: Sequence[str]) -> dict[str, Tensor]:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(ids)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Interrupted())
    assert not list(tmp_path.iterdir())
    fill(tmp_path, Counter())


@pytest.mark.parametrize("damage", ["index", "array", "shorter"])
def test_a_damaged_cache_is_computed_anew(tmp_path: Path, damage: str) -> None:
    expected = fill(tmp_path, Counter()).rows(IDS)
    array = tmp_path / "store" / "latents.npy"
    if damage == "index":
        (tmp_path / "store" / "index.json").write_text('{"format": 1')
    elif damage == "array":
        array.unlink()
    else:
        array.write_bytes(array.read_bytes()[:-8])
    again = Counter()
    found = fill(tmp_path, again).rows(IDS)
    assert sum(again.asked, []) == IDS
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_files_are_plain_numpy(tmp_path: Path) -> None:
    fill(tmp_path, Counter())
    assert np.array_equal(np.load(tmp_path / "store" / "latents.npy")[:, 0, 0], np.arange(7, dtype=np.float32) + 0.1)


@given(st.integers(0, 50), st.integers(1, 9))
def test_cutting(count: int, size: int) -> None:
    ids = [str(n) for n in range(count)]
    parts = list(cache.cut(ids, size))
    assert sum(map(list, parts), []) == ids
    assert all(len(part) <= size + 1 for part in parts)
    if count > 1 and size > 1:
        assert all(len(part) > 1 for part in parts)
    if count > 1 and size == 1:
        assert all(len(part) == 1 for part in parts[:-1])
