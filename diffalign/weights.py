"""Weights on disk: where a model lies, what its content hashes to, and why loaded tensors are copied."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffalign import places
from diffalign.records import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_FILES = (".safetensors", ".gguf", *_PICKLES)
# what a pipeline reads beside weights; chat templates are in Jinja
_TOLD = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja")

# (dtype as torch calls it, or as the file does where torch has none; shape; first byte) of a tensor in a file
Place = tuple[str, list[int], int]


@dataclass(frozen=True)
class Source:
    """Where a model lies: a folder in diffusers' layout, and a single file whose weights go before the folder's.

    Without `encoders` its autoencoder and text encoders are wanted as shapes only, since nothing will be encoded.
    """

    folder: Path
    file: Path | None = None
    encoders: bool = True


def locate(model: str, config: str = "", *, whole: bool = True) -> Source:
    """Where a model lies: a local folder, a single .safetensors file that the folder or hub id `config` describes, a
    shipped model ("shapes/sdxl"), or the snapshot of a hub id ("owner/name"), fetched only because it was named, and
    unless `whole` no more of it than its index.

    Raises InputError where there is no model, saying what was expected.
    """
    path = Path(model)
    if path.is_dir():
        if config:
            raise InputError(f"config = {config}: says what a single file is, but {path} is a folder")
        return Source(_whole(path))
    if path.suffix in _PICKLES and path.exists():
        raise _unpickled(path)
    if path.suffix == ".gguf" and path.exists():
        raise InputError(f"{path}: is a GGUF file, of weights in few bits; give the .safetensors file it was made from")
    if path.exists():
        header(path)
        return Source(_described(config) if config else path, path)
    if model.startswith("shapes/"):
        return Source(_whole(places.asset(model)))
    if not on_hub(model):
        raise InputError(f"{model}: no such model folder or file")
    return Source(_snapshot(model, whole=whole))


def on_hub(name: str) -> bool:
    """Whether this can be a hub id, "owner/name"; shapes/… are models of ours."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~", "shapes/")) and not name.endswith(_FILES)


def _described(config: str) -> Path:
    """The folder that says what a single file is; of a hub id all but its weights are fetched."""
    if Path(config).exists() or not on_hub(config):
        return _whole(Path(config))
    return _whole(snapshot(config, _TOLD))


def check_part(folder: Path) -> None:
    """Raise InputError naming a file of a model's part that is not whole, or a pickle where there is nothing else."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        header(file)
    pickles = [] if files else sorted(p for p in folder.glob("*") if p.suffix in _PICKLES)
    if pickles:
        raise _unpickled(pickles[0])


def _unpickled(path: Path) -> InputError:
    inner = "['state_dict']" if path.suffix == ".ckpt" else ""
    return InputError(
        f"{path}: is a pickle, which can run code and is never loaded; convert it where you trust it: "
        f"safetensors.torch.save_file(torch.load(IN, weights_only=True){inner}, OUT)"
    )


def _whole(folder: Path) -> Path:
    if not (folder / "model_index.json").is_file():
        if (folder / "run.json").is_file():
            advice = "`--model BASE --lora RUN`, or make a model of it: `diffalign convert RUN --to merged --out DIR`"
            raise InputError(f"{folder}: is a run and no model; name what it was trained on, {advice}")
        raise InputError(f"{folder}: holds no model_index.json; expected a model folder in diffusers' layout")
    return folder


def _snapshot(name: str, *, whole: bool) -> Path:
    # files at the top are single checkpoints beside the folders, and variants are copies in another dtype
    wanted = (*_TOLD, "*/*.safetensors") if whole else _TOLD[:1]
    return _whole(snapshot(name, wanted, ("*.fp16.*", "*.non_ema.*", "safety_checker/*")))


def snapshot(name: str, wanted: Sequence[str], unwanted: Sequence[str] = (), *, fetch: bool = True) -> Path:
    """The folder of a hub repository, "owner/name" or "owner/name@revision", with the files of the patterns `wanted`.

    Without `fetch` only the local hub cache is looked at. Raises InputError where it cannot be had, and how it can.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    owned, _, revision = name.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            owned, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=list(unwanted),
            local_files_only=not fetch,
        )  # fmt: skip
    except GatedRepoError:
        remedy = "accept its licence on its page, then log in with `hf auth login` or set HF_TOKEN"
        raise InputError(f"{name}: is gated on the hub, and no token opens it; {remedy}") from None
    except RepositoryNotFoundError:
        raise InputError(f"{name}: no such folder, and the hub knows no such model, or hides it") from None
    except LocalEntryNotFoundError:
        if not fetch:
            command = f"hf download {owned}" + (f" --revision {revision}" if revision else "")
            remedy = f"fetch it (`{command}`), or give a local file or folder"
            raise InputError(f"{name}: is not in the local hub cache; {remedy}") from None
        remedy = "download it where there is a network, or give a local folder"
        raise InputError(f"{name}: is not in the local cache, and the hub is not reached; {remedy}") from None
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"{name}: no such folder, and the hub does not give it ({type(error).__name__})") from None
    return Path(found)


def push(folder: Path, name: str, kind: Literal["model", "dataset"] = "model", *, private: bool = False) -> None:
    """Upload a folder to the hub repository "owner/name", made where it is not there.

    Raises InputError where the hub refuses; the folder stays.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(name, exist_ok=True, repo_type=kind, private=private)
        hub.upload_folder(repo_id=name, folder_path=folder, repo_type=kind)
    except (HTTPError, OSError, ValueError) as error:
        remedy = "log in with `hf auth login`, or upload it by `hf upload`"
        why = type(error).__name__
        raise InputError(f"{folder}: is written, but {name} does not take it ({why}); {remedy}") from None


def header(path: Path) -> dict[str, list[int]]:
    """Shape of every tensor in a safetensors file, by name, without reading any.

    Raises InputError where the file is not safetensors, or shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            length = path.stat().st_size
            entries = json.loads(file.read(size)) if size <= length - 8 else None
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        end = 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: list(entry["shape"]) for name, entry in tensors.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise InputError(f"{path}: is not a whole safetensors file; its header cannot be read") from None
    if end != length:
        raise InputError(f"{path}: is not a whole safetensors file; {length} bytes, expected {end}")
    return shapes


def index(folder: Path) -> dict:
    """`model_index.json` of a model folder; raises InputError where it is not JSON or names no pipeline class."""
    path = folder / "model_index.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: cannot be read (expected an object)")
    if "_class_name" not in found:
        raise InputError(f"{path}: field _class_name is missing; expected the name of a diffusers pipeline")
    return found


def adapter_file(place: Path) -> Path:
    """The safetensors file of an adapter: the file itself, or the one in a folder or in a run's `policy/`."""
    if place.is_dir():
        if full := next(((place / "policy").glob("*/config.json")), None):
            remedy = "`diffalign convert RUN --to merged --out DIR` makes a model folder of it"
            raise InputError(f"{place}: holds weights ({full.parent.name}) instead of an adapter; {remedy}")
        known = [place / "pytorch_lora_weights.safetensors", place / "policy" / "pytorch_lora_weights.safetensors"]
        place = next((p for p in known if p.is_file()), known[0])
    if not place.is_file():
        raise InputError(f"{place}: no such adapter file")
    if place.suffix != ".safetensors":
        raise InputError(f"{place}: expected a .safetensors file; pickled weights are never loaded")
    return place


def fingerprint(place: Path | Source) -> str:
    """blake2b-128 of a file, or of all configuration and weight files below a folder, by relative path and content."""
    if isinstance(place, Source):
        parts = [fingerprint(part) for part in (place.folder, place.file) if part is not None]
        return parts[0] if len(parts) == 1 else hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in (".json", ".safetensors"))
    h = hashlib.blake2b(digest_size=16)
    for path in files:
        name = path.name if path == place else path.relative_to(place).as_posix()
        h.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            h.update(hashlib.file_digest(file, "blake2b").digest())
    return h.hexdigest()


def reread(module: "nn.Module", folder: Path) -> bool:
    """Give every parameter and buffer memory of its own and read it there from diffusers' files in `folder`.

    The files were only mapped until now, so that no tensor is in memory twice. False where the files hold something
    else than the module's state in its dtypes; then nothing has been done.
    """
    import torch

    whole = folder / "diffusion_pytorch_model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("diffusion_pytorch_model-*-of-*.safetensors"))
    found = {name: (file, *place) for file in files for name, place in places_in(file).items()}
    state = module.state_dict()
    held = {n: (str(v.dtype).removeprefix("torch."), list(v.shape)) for n, v in state.items()}
    if held != {n: place[1:3] for n, place in found.items()}:
        return False
    del state
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        # buffers that are not saved are in no file, and were not mapped from one
        saved = name in found
        tensor.data = torch.empty_like(tensor, memory_format=torch.contiguous_format) if saved else tensor.clone()
    for name, tensor in module.state_dict().items():
        file, _, _, start = found[name]
        _fill(tensor, file, start)
    return True


def read(file: Path, place: Place) -> "Tensor":
    """One tensor of a safetensors file, in memory of its own."""
    import torch

    dtype, shape, start = place
    return _fill(torch.empty(shape, dtype=getattr(torch, dtype)), file, start)


def _fill(tensor: "Tensor", file: Path, start: int) -> "Tensor":
    import torch

    with file.open("rb") as stream:
        stream.seek(start)
        stream.readinto(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return tensor


def places_in(file: Path) -> dict[str, Place]:
    """Where every tensor in a safetensors file lies, by name."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(size))
    return {
        name: (_DTYPES.get(entry["dtype"], entry["dtype"]), entry["shape"], 8 + size + entry["data_offsets"][0])
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def settle(module: "nn.Module") -> "nn.Module":
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
