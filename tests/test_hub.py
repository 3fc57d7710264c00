"""Sets on the hub, without one: a file system that says it is the hub, and what is asked of it; and what is pushed."""

import io
from pathlib import Path
from typing import Any

import datasets
import fixtures_sets as sets
import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from diffalign import dataset, folders
from diffalign.filtering import filter
from diffalign.importing import import_
from diffalign.inspecting import inspect
from diffalign.pushing import push
from diffalign.readers import hub
from diffalign.records import InputError


class Unreachable(Exception):
    """What a library of the network raises."""


class Hidden(RepositoryNotFoundError):
    def __init__(self) -> None:
        Exception.__init__(self, "404")


class Counted(io.FileIO):
    """A file that counts the bytes that were read of it."""

    read_bytes = 0
    broken = False

    def read(self, size: int = -1) -> bytes:
        if Counted.broken:
            raise Unreachable("nobody there")
        found = super().read(size)
        Counted.read_bytes += len(found)
        return found


class Hub:
    """What `HfFileSystem` is asked for, over the files of a folder."""

    place = Path()
    listed: dict[str, Path] = {}

    def find(self, root: str, detail: bool) -> dict[str, dict[str, Any]]:
        found = {n: p for n, p in Hub.listed.items() if n.startswith(f"{root}/")}
        if "nobody" in root:
            raise Hidden
        if "offline" in root:
            raise HTTPError("Name or service not known")
        return {name: {"size": path.stat().st_size} for name, path in found.items()}

    def open(self, path: str, mode: str) -> Counted:
        assert mode == "rb"
        return Counted(Hub.listed[path])


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Hub)
    Hub.listed, Counted.read_bytes, Counted.broken = {}, 0, False


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("me/set", ("me/set", None, "")),
        ("me/set@v1", ("me/set", "v1", "")),
        ("hf:/datasets/me/set/data/train", ("me/set", None, "data/train")),
        ("hf://datasets/me/set@v1/data", ("me/set", "v1", "data")),
        ("me/set/data", None),
        ("./me", None),
        ("../set", None),
        ("/me/set", None),
        ("set", None),
        ("me/set.csv", None),
    ],
)
def test_what_is_a_name_on_the_hub(name: str, expected: tuple[str, str | None, str] | None) -> None:
    assert hub.named(Path(name)) == expected


def test_a_set_is_read_in_place_and_labels_before_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two row groups of large pictures one has no decided row, and its pictures are never fetched."""
    monkeypatch.chdir(tmp_path)
    big = [sets.noise(n) for n in range(4)]
    rows = []
    for n in range(8):
        label = 1.0 if n < 4 else 0.5
        known = {"caption": f"prompt {n}", "label_0": label, "label_1": 1 - label, "has_label": True}
        rows.append(known | {"jpg_0": big[n % 4], "jpg_1": big[(n + 1) % 4]})
    path = sets.parquet(tmp_path / "it.parquet", rows, group=4)
    Hub.listed = {"datasets/me/set/data/train-0.parquet": path}
    said = import_(Path("me/set"), out=tmp_path / "out", ties="drop")
    assert "4 of 8 rows kept as pickapic" in said
    assert "left out: 4 tie" in said
    assert Counted.read_bytes < 0.7 * path.stat().st_size
    local = import_(path, out=tmp_path / "local")
    assert folders.records(tmp_path / "local", "judgements") == folders.records(tmp_path / "out", "judgements")
    assert folders.records(tmp_path / "local", "images") == folders.records(tmp_path / "out", "images")
    assert local
    assert "8 rows as pickapic" in inspect(Path("me/set"))
    rows[1]["label_1"] = 0.25
    sets.parquet(path, rows, group=4)
    with pytest.raises(InputError, match=r"me/set/data/train-0.parquet, row 1, field label_0: labels disagree"):
        import_(Path("me/set"), out=tmp_path / "refused", bad="refuse")


def test_revisions_folders_and_what_the_hub_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = sets.pickapic(tmp_path / "set")
    Hub.listed = {
        "datasets/me/set@v1/a/one.parquet": made.source,
        "datasets/me/set@v1/b/two.parquet": made.source,
        "datasets/me/other@refs%2Fconvert%2Fparquet/default/train/0000.parquet": made.source,
    }
    assert [f.path.as_posix() for f in hub.files("me/set", "v1", "")] == [
        "me/set/a/one.parquet",
        "me/set/b/two.parquet",
    ]
    assert [f.path.as_posix() for f in hub.files("me/set", "v1", "b")] == ["me/set/b/two.parquet"]
    assert [f.path.as_posix() for f in hub.files("me/other", None, "")] == ["me/other/default/train/0000.parquet"]
    assert "of 7 rows kept" in import_(Path("me/other"), out=tmp_path / "out")


def test_what_the_hub_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="me/empty: holds no Parquet on the hub; hf download me/empty --repo-type"):
        import_(Path("me/empty"), out=tmp_path / "out")
    with pytest.raises(InputError, match="me/nobody: no such file or folder, and the hub knows no such set"):
        import_(Path("me/nobody"), out=tmp_path / "out")
    with pytest.raises(
        InputError, match=r"me/offline: no such file or folder, and the hub does not give it \(HTTPError"
    ):
        import_(Path("me/offline"), out=tmp_path / "out")
    with pytest.raises(InputError, match="nothing/at/all: no such file or folder; a set on the hub is named"):
        import_(Path("nothing/at/all"), out=tmp_path / "out")
    made = sets.pickapic(tmp_path / "set")
    Hub.listed = {"datasets/me/set/train.parquet": made.source}
    with pytest.raises(InputError, match="set/gone: no such file or folder; a set on the hub is named"):
        import_(Path("set/gone"), out=tmp_path / "out")
    Counted.broken = True
    with pytest.raises(InputError, match=r"is not a whole Parquet file \(the hub broke off \(Unreach"):
        import_(Path("me/set"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- push


def test_a_packed_folder_is_one_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sets.hpdv2(tmp_path / "set")
    import_(made.source, out=tmp_path / "a")
    filter(tmp_path / "a", out=tmp_path / "b", repeated="drop")
    said = push(tmp_path / "b", out=tmp_path / "packed")
    assert "packed (licence: hpdv2: Apache-2.0); next: diffalign push" in said
    packed = tmp_path / "packed"
    assert folders.records(packed, "judgements") == folders.records(tmp_path / "b", "judgements")
    before, after = dataset.Dataset(tmp_path / "b"), dataset.Dataset(packed)
    assert list(before.groups) == list(after.groups)
    assert sorted(before.shown_texts()) == sorted(after.shown_texts())
    table = datasets.load_dataset(str(packed), "images", split="train", cache_dir=str(tmp_path / "cache"))
    assert table[0]["image"].size == (table[0]["width"], table[0]["height"])
    assert "Licence of what it was made from: hpdv2: Apache-2.0" in (packed / "README.md").read_text()
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, name, **more: asked.append((name, more)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **more: asked.append(more))
    assert "uploaded as me/it" in push(tmp_path / "b", out=packed, to="me/it", private=True)
    assert asked[0] == ("me/it", {"exist_ok": True, "repo_type": "dataset", "private": True})
    assert asked[1] == {"repo_id": "me/it", "folder_path": packed, "repo_type": "dataset"}
    again = push(packed, out=tmp_path / "again")
    assert "hpdv2: Apache-2.0" in again, "the terms travel along"


def test_pictures_that_may_not_be_passed_on_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sets.pickapic(tmp_path / "set")
    assert "licence of the set: none on its card" in import_(made.source, out=tmp_path / "a")
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, name, **more: asked.append(name))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **more: asked.append(more["repo_id"]))
    with pytest.raises(InputError, match="licence: pickapic: none on its card.*nothing was uploaded; --anyway"):
        push(tmp_path / "a", out=tmp_path / "b", to="me/it")
    assert not asked
    assert not (tmp_path / "b").exists()
    assert "uploaded as me/it" in push(tmp_path / "a", out=tmp_path / "b", to="me/it", anyway=True)
    assert asked == ["me/it", "me/it"]
    with pytest.raises(InputError, match="none on its card"):
        push(tmp_path / "b", out=tmp_path / "c", to="me/it")
