"""Weights on disk: where a model lies, what its content hashes to, and why loaded tensors are copied."""

import hashlib
import json
from pathlib import Path

from torch import nn

from diffalign import places
from diffalign.records import InputError

_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def locate(model: str) -> Path:
    """The folder of a model: a local folder, a shipped one ("shapes/sdxl"), or the snapshot of a hub id ("owner/name").

    The hub is asked only where its id was named.

    Raises InputError where there is no model, saying what was expected.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{path}: holds no model_index.json; expected a model folder in diffusers' layout")
        return path
    if model.startswith("shapes/"):
        return places.asset(model)
    if path.exists():
        kind = "a pickle, which is never loaded" if path.suffix in _PICKLES else "a single file"
        raise InputError(f"{path}: is {kind}; expected a model folder in diffusers' layout or a hub id")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(f"{model}: no such model folder")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{model}: no such folder, and the hub does not give it ({type(error).__name__})") from None


def index(folder: Path) -> dict:
    """`model_index.json` of a model folder; raises InputError where it is not JSON or names no pipeline class."""
    path = folder / "model_index.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if "_class_name" not in found:
        raise InputError(f"{path}: field _class_name is missing; expected the name of a diffusers pipeline")
    return found


def adapter_file(place: Path) -> Path:
    """The safetensors file of an adapter: the file itself, or the one in a folder or in a run's `policy/`."""
    if place.is_dir():
        known = [place / "pytorch_lora_weights.safetensors", place / "policy" / "pytorch_lora_weights.safetensors"]
        place = next((p for p in known if p.is_file()), known[0])
    if not place.is_file():
        raise InputError(f"{place}: no such adapter file")
    if place.suffix != ".safetensors":
        raise InputError(f"{place}: expected a .safetensors file; pickled weights are never loaded")
    return place


def fingerprint(place: Path) -> str:
    """blake2b-128 of a file, or of all configuration and weight files below a folder, by relative path and content."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in (".json", ".safetensors"))
    h = hashlib.blake2b(digest_size=16)
    for path in files:
        name = path.name if path == place else path.relative_to(place).as_posix()
        h.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            h.update(hashlib.file_digest(file, "blake2b").digest())
    return h.hexdigest()


def settle(module: nn.Module) -> nn.Module:
    """Give every parameter and buffer memory of its own.

    Weights mapped from a file lie at other alignments, for which the matrix library picks other kernels: without
    this, the same weights draw a picture that differs in the last bits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
    return module


def settle_header(path: Path) -> None:
    """Rewrite a safetensors file's header with sorted keys: its writer leaves the order of the metadata to chance."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
