"""The cache: computed once, written whole or not at all, shared, checked, and read back as it was."""

import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffalign import cache
from diffalign.records import InputError

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


def fill(
    place: Path,
    compute: Counter,
    key: dict[str, object] | None = None,
    ids: Sequence[str] = IDS,
    dtype: str = "float32",
) -> cache.Store:
    """The store of the ids, after what is missing was computed in batches of three."""
    store = cache.Store(place, "latents", key or {"model": "m"})
    missing = store.missing(ids)
    cache.fill(store, [b for b in cache.cut(ids, 3) if not missing.isdisjoint(b)], compute, dtype)
    return store


def parts(place: Path) -> list[Path]:
    return sorted(place.glob("latents-*/part-*.safetensors"))


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


def test_every_row_of_many_is_found(tmp_path: Path) -> None:
    ids = [f"row {n}" for n in range(3000)]
    store = cache.Store(tmp_path, "texts", {})
    numbers = {name: torch.tensor([float(n)]) for n, name in enumerate(ids)}
    cache.fill(store, [ids[:1000], ids[1000:]], lambda batch: {"n": torch.stack([numbers[i] for i in batch])})
    assert store.rows(ids)["n"].flatten().tolist() == list(range(3000))
    assert not store.missing(ids)
    assert store.missing([*ids, "row 3000"]) == {"row 3000"}


def test_a_batch_of_one_is_shown_as_two(tmp_path: Path) -> None:
    compute = Counter()
    store = fill(tmp_path, compute, ids=IDS[:1])
    assert compute.asked == [["image0", "image0"]]
    assert store.rows(["image0"])["latents"].shape == (1, 2, 3)


def test_what_is_there_is_shared_and_only_what_is_missing_computed(tmp_path: Path) -> None:
    first = fill(tmp_path, Counter(), ids=IDS[:3]).rows(IDS[:3])
    again = Counter()
    second = fill(tmp_path, again).rows(IDS)
    assert again.asked == [IDS[3:]], "whole batches, since an interruption must not change how anything is computed"
    assert all(torch.equal(first[k], second[k][:3]) for k in first)
    fill(tmp_path, again)
    assert len(again.asked) == 1


def test_another_key_is_another_store(tmp_path: Path) -> None:
    fill(tmp_path, Counter())
    compute = Counter()
    fill(tmp_path, compute, {"model": "n"})
    assert sum(compute.asked, []) == IDS
    assert len(list(tmp_path.iterdir())) == 2


def test_foreign_parts_are_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, Counter())
    (mine,) = parts(tmp_path)
    other = cache.Store(tmp_path, "latents", {"model": "n"})
    shutil.copytree(mine.parent, other.folder)
    with pytest.raises(InputError, match="key.json: is of another cache; expected .*delete"):
        cache.Store(tmp_path, "latents", {"model": "n"})
    (other.folder / "key.json").unlink()
    with pytest.raises(InputError, match=rf"{mine.name}: is of another cache \(key .*delete it"):
        cache.Store(tmp_path, "latents", {"model": "n"})


def test_dtypes(tmp_path: Path) -> None:
    """float64 stays; everything else is read as float32, however it lies there."""
    assert fill(tmp_path / "a", Counter(torch.float64)).rows(IDS)["latents"].dtype == torch.float64
    assert fill(tmp_path / "b", Counter(torch.bfloat16)).rows(IDS)["latents"].dtype == torch.float32
    narrow = fill(tmp_path / "c", Counter(), dtype="float16").rows(IDS)["latents"]
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, Counter()(IDS)["latents"].half().float())
    with pytest.raises(InputError, match="latents: values up to 70000 do not fit into float16"):
        cache.fill(cache.Store(tmp_path, "x", {}), [["a"]], lambda _: {"latents": torch.full((2, 1), 7e4)}, "float16")


def test_an_interruption_keeps_what_was_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_BYTES", 1)

    class Interrupted(Counter):
        def __call__(self, ids: Sequence[str]) -> dict[str, Tensor]:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(ids)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Interrupted())
    compute = Counter()
    fill(tmp_path, compute)
    assert compute.asked == [IDS[3:]]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("damage", ["gone", "shorter", "no header"])
def test_parts_that_are_not_whole_are_computed_anew(tmp_path: Path, damage: str) -> None:
    expected = fill(tmp_path, Counter()).rows(IDS)
    (part,) = parts(tmp_path)
    data = part.read_bytes()
    part.unlink()
    if damage != "gone":
        part.write_bytes(data[:-8] if damage == "shorter" else data[:20])
    again = Counter()
    found = fill(tmp_path, again).rows(IDS)
    assert sum(again.asked, []) == IDS
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_every_row_is_checked_when_it_is_read(tmp_path: Path) -> None:
    fill(tmp_path, Counter())
    (part,) = parts(tmp_path)
    data = bytearray(part.read_bytes())
    at = data.index(torch.full((1,), 5.1).numpy().tobytes())
    data[at] ^= 1
    part.write_bytes(data)
    store = cache.Store(tmp_path, "latents", {"model": "m"})
    assert store.rows(["image4"])
    with pytest.raises(InputError, match=rf"{part.name}: row 5 is damaged; delete the file and run again"):
        store.rows(["image5"])


def _fill_some(place: Path, start: int) -> None:
    cache.PART_BYTES = 1
    ids = [f"image{n % 7}" for n in range(start, start + 6)]
    for name in ids:
        cache.fill(cache.Store(place, "latents", {"model": "m"}), [[name]], Counter())


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_fill_some, args=(tmp_path, start)) for start in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [w.exitcode for w in writers] == [0, 0, 0]
    store = cache.Store(tmp_path, "latents", {"model": "m"})
    assert torch.equal(store.rows(IDS)["latents"], Counter()(IDS)["latents"])
    assert not list(tmp_path.rglob(".*"))


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
