"""Where models lie, and how their weights get into memory."""

from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from diffalign import weights
from diffalign.records import InputError


def test_weights_are_read_from_their_files_into_memory_of_their_own(models: dict[str, Path]) -> None:
    folder = models["sdxl"] / "unet"
    there = diffusers.UNet2DConditionModel.from_pretrained(folder)
    before = {name: value.data_ptr() for name, value in there.state_dict().items()}
    assert weights.reread(there, folder)
    on_disk = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors")
    for name, value in there.state_dict().items():
        assert torch.equal(value, on_disk[name]), name
        assert value.data_ptr() != before[name], "still mapped"
        assert value.is_contiguous()


def test_weights_in_several_files_and_narrow_dtypes(models: dict[str, Path], tmp_path: Path) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(models["sd"] / "unet").to(torch.bfloat16)
    unet.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert weights.reread(again, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in unet.state_dict().items())


def test_weights_that_were_converted_are_left_alone(models: dict[str, Path]) -> None:
    folder = models["sd"] / "unet"
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, dtype=torch.float64)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    assert not weights.reread(unet, folder)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in before.items())


def test_buffers_that_are_not_saved_survive(models: dict[str, Path]) -> None:
    folder = models["sd"] / "unet"
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder)
    unet.register_buffer("ramp", torch.arange(5.0), persistent=False)
    assert weights.reread(unet, folder)
    assert torch.equal(unet.ramp, torch.arange(5.0))


def test_headers_tell_shapes_without_reading(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, file, metadata={"k": "v"})
    assert weights.header(file) == {"a": [2, 3], "b": []}


@pytest.mark.parametrize("damage", ["short", "long", "text", "empty", "no header", "list"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(64)}, file)
    data = file.read_bytes()
    damaged = {
        **{"short": data[:-8], "long": data + b"x", "text": b"<!DOCTYPE html>" * 20, "empty": b""},
        **{"no header": data[:12], "list": (2).to_bytes(8, "little") + b"[]"},
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=r"x\.safetensors: is not a whole safetensors file") as error:
        weights.header(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["v1-5.ckpt", "pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="is a pickle.*never loaded; convert it.*weights_only=True"):
        weights.locate(str(tmp_path / name))


def raised(kind: type[Exception]) -> Exception:
    """An error of the hub without the answer of a server, which it wants to be made from."""
    return kind.__new__(kind, "no")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: raised(GatedRepoError), "is gated on the hub.*hf auth login"),
        (lambda: raised(RepositoryNotFoundError), "no such folder, and the hub knows no such model"),
        (lambda: LocalEntryNotFoundError("no"), "is not in the local cache, and the hub is not reached"),
        (lambda: OSError("no"), r"no such folder, and the hub does not give it \(OSError\)"),
    ],
)
def test_what_the_hub_says_in_one_line(monkeypatch: pytest.MonkeyPatch, error, message: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=f"owner/model: {message}") as caught:
        weights.locate("owner/model")
    assert "\n" not in str(caught.value)


def test_a_hub_id_that_was_never_fetched_is_refused_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="is not in the local cache"):
        weights.locate("nobody/nothing")


def test_the_command_that_fetches_names_the_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, command in (("a/tower", "hf download a/tower"), ("a/tower@v2", "hf download a/tower --revision v2")):
        with pytest.raises(InputError, match=rf"{name}: is not in .* fetch it \(`{command}`\)"):
            weights.snapshot(name, ["*"], fetch=False)


def test_only_what_a_pipeline_needs_is_fetched(monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]) -> None:
    asked = {}

    def fetch(name: str, **options: list[str]) -> str:
        asked.update(options)
        return str(models["sd"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert weights.locate("owner/model") == weights.Source(models["sd"])
    listed = [
        *("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned.safetensors"),
        *("unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors"),
    ]
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    kept = huggingface_hub.utils.filter_repo_objects(listed, **patterns)
    assert list(kept) == listed[:4]
    for family, folder in models.items():  # and all of that: chat templates are files of their own
        files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        assert sorted(huggingface_hub.utils.filter_repo_objects(files, **patterns)) == sorted(files), family
    weights.locate("owner/model", whole=False)
    assert asked["allow_patterns"] == ["model_index.json"]
