"""Checkpoints and what is written as a folder: whole or gone, and known to be whole by content."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from diffalign import checkpoint
from diffalign.records import InputError

TENSORS = {"policy": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"a.step": torch.tensor(3.0)}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    checkpoint.save(folder, TENSORS, {"step": 3, "divergence": 0.1})
    tensors, data = checkpoint.load(folder)
    assert data == {"step": 3, "divergence": 0.1}
    assert tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert all(torch.equal(values[k], tensors[name][k]) for k in values)
        assert values.keys() == tensors[name].keys()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def test_tensors_that_are_not_contiguous_are_saved_as_they_read(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    checkpoint.save(tmp_path / "c", {"policy": {"a": turned}}, {})
    assert torch.equal(checkpoint.load(tmp_path / "c")[0]["policy"]["a"], turned)


def test_loaded_tensors_have_memory_of_their_own(tmp_path: Path) -> None:
    """Mapped ones lie where the file puts them, and compute other last bits."""
    checkpoint.save(tmp_path / "c", {"policy": {"odd": torch.zeros(3), "even": torch.zeros(64)}}, {})
    found = checkpoint.load(tmp_path / "c")[0]["policy"]
    (tmp_path / "c" / "policy.safetensors").write_bytes(b"")
    assert not any(t.any() for t in found.values())
    assert all(t.data_ptr() % 64 == 0 for t in found.values())


@pytest.mark.parametrize("file", ["policy.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_damage_is_named(tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "checkpoint-3"
    checkpoint.save(folder, TENSORS, {"step": 3})
    victim = folder / file
    data = bytearray(victim.read_bytes())
    if damage == "gone":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 255
        victim.write_bytes(data if damage == "flipped" else data[:-5])
    with pytest.raises(InputError, match=rf"{folder}.*(is damaged|is not whole)") as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", TENSORS, {"step": 3})
    for text in ("[]", "3", "{}", '{"hashes": {}}'):
        (tmp_path / "c" / "state.json").write_text(text)
        with pytest.raises(InputError, match="is not whole"):
            checkpoint.load(tmp_path / "c")


def test_a_checkpoint_replaces_one_of_its_name(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path / "c", {f"part{step}": {"a": torch.zeros(1)}}, {"step": step})
    assert checkpoint.load(tmp_path / "c")[1] == {"step": 2}
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["part2.safetensors", "state.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


class Broken(Exception):
    """What goes wrong while a folder is written."""


def test_a_write_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "c", TENSORS, {"step": 1})

    def fail(*_: object) -> None:
        raise Broken

    for name in ("save_file", "publish", "_hash"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, fail)
            with pytest.raises(Broken):
                checkpoint.save(tmp_path / "c", TENSORS, {"step": 2})
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
        assert checkpoint.load(tmp_path / "c")[1] == {"step": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_an_error_of_the_system_whoever_writes(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught, checkpoint.written(tmp_path / "c"):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    assert caught.value.errno == number
    with pytest.raises(SafetensorError), checkpoint.written(tmp_path / "c"):
        raise SafetensorError("invalid shape")
    assert not list(tmp_path.iterdir())


def test_found_pruned_and_forgotten(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        checkpoint.save(tmp_path / f"checkpoint-{step}", TENSORS, {"step": step})
    (tmp_path / "checkpoint-new").mkdir()
    (tmp_path / ".checkpoint-11.tmp").mkdir()

    def names() -> list[str]:
        return [p.name for p in checkpoint.found(tmp_path)]

    assert names() == ["checkpoint-10", "checkpoint-9", "checkpoint-2"], "by number, newest first"
    checkpoint.prune(tmp_path, 2)
    assert names() == ["checkpoint-10", "checkpoint-9"]
    assert not (tmp_path / ".checkpoint-11.tmp").exists()
    checkpoint.forget(tmp_path, 9)
    assert names() == ["checkpoint-9"]
    assert (tmp_path / "checkpoint-new").exists()


def test_state_is_readable_by_people(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", TENSORS, {"step": 3})
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    assert set(state) == {"data", "hashes"}
    assert set(state["hashes"]) == {"policy.safetensors", "optimizer.safetensors"}
