"""Weights of a scorer: where they lie, what they hash to, and that they fit the architecture to the last key."""

import hashlib
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffalign.records import InputError, digest
from diffalign.weights import settle, snapshot

if TYPE_CHECKING:
    import torch
    from torch import nn

TOKENIZER = (
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
)  # fmt: skip
# what transformers reads of a folder, by its endings: a chat template and sentence pieces as well
_READ = (".json", ".txt", ".jinja", ".model", ".safetensors", ".bin")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def locate(place: str, official: str, wanted: Sequence[str]) -> Path:
    """Where a scorer's weights lie: the local file or folder `place`; the hub's "owner/name[@revision]" it names, which
    is fetched only because it was named; or, where `place` is empty, what the local hub cache holds of `official`.

    `wanted` are patterns of the files to take from the hub. Raises InputError where there is nothing.
    """
    if place:
        path = Path(place)
        if path.exists():
            return path
        if place.count("/") != 1 or place.startswith((".", "/", "~")):
            raise InputError(f"{place}: no such file or folder")
        return snapshot(place, wanted)
    return snapshot(official, wanted, fetch=False)


def split(place: str, count: int) -> list[str]:
    """The `count` places of "first,second", those left out empty; raises InputError where there are more."""
    parts = place.split(",") if place else []
    if len(parts) > count:
        raise InputError(f"{place}: names {len(parts)} places, expected at most {count}")
    return [*parts, *[""] * (count - len(parts))]


def file_in(place: Path, *names: str) -> Path:
    """`place` where it is a file, else the first of `names` in that folder; raises InputError where there is none."""
    if place.is_file():
        return place
    found = [place / name for name in names if (place / name).is_file()]
    if not found:
        raise InputError(f"{place}: holds no {' or '.join(names)}")
    return found[0]


def with_tokenizer(
    place: str, official: tuple[str, Sequence[str]], words: str, vocabulary: str
) -> tuple[Path, Path, str]:
    """(file, folder of its tokenizer, revision of both) of "FILE" or "FILE,TOKENIZER".

    `official`: the hub id of the file and its names there. The tokenizer is the one named, else one beside the file
    (tokenizer.json, or `vocabulary`), else that of the hub id `words`. Raises InputError as `locate` and `file_in` do.
    """
    file, named = split(place, 2)
    model, names = official
    path = file_in(locate(file, model, names), *names)
    beside = not named and any((path.parent / name).is_file() for name in (vocabulary, "tokenizer.json"))
    folder = path.parent if beside else locate(named, words, TOKENIZER)
    return path, folder, revision(path, *files_of(folder, TOKENIZER))


def folder_of(place: Path) -> Path:
    """A folder in transformers' layout; raises InputError where it has no configuration or no weights."""
    if not (place / "config.json").is_file():
        raise InputError(f"{place / 'config.json'}: no such file; expected a model folder in transformers' layout")
    file_in(place, *WEIGHTS)
    return place


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that one of the patterns names, in the order of the patterns."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def revision(*places: Path) -> str:
    """blake2b-128 over the content of the files, or of the configuration, tokenizer and weights of the folders, named.

    A large file in the hub's cache is named by its own SHA-256, which is taken instead of reading gigabytes again;
    other files are read whole at every start.
    """
    said = []
    for place in places:
        if place.is_file():
            said.append(_content(place))
            continue
        for path in sorted(p for p in place.iterdir() if p.suffix in _READ):
            said += [path.name, _content(path)]
    return digest(*said)


def _content(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return f"sha256:{blob.name}"
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a .safetensors file, or of a pickle that holds tensors only (below "state_dict", where it is so).

    A pickle is read by torch's restricted reader, which runs no code; raises InputError for any other.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is not a whole safetensors file ({_line(error)})") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of how other pickles are written
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # the reader raises whatever the bytes lead it to; its text advises to run the code
        what = type(error).__name__
        raise InputError(f"{path}: is no file of tensors only, and others are never loaded ({what})") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise InputError(f"{path}: holds {type(found).__name__}, expected tensors by name")
    return dict(found)


def fit(
    module: "nn.Module", state: Mapping[str, "torch.Tensor"], path: Path, spare: Collection[str] = ()
) -> "nn.Module":
    """The module with the weights of `state`, frozen, in float32; names in `spare` may be there without being used.

    Raises InputError listing the names that are missing, not known, or of another shape.
    """
    fit_all({"": module}, state, path, spare)
    return module


def fit_all(
    modules: Mapping[str, "nn.Module"], state: Mapping[str, "torch.Tensor"], path: Path, spare: Collection[str] = (),
    others: Collection[str] = (),
) -> None:  # fmt: skip
    """As `fit`, for several modules in one state, in which the names of each begin with its key.

    `others` have to be there, for somebody else to read. What does not fit in any of them is listed in one line.
    """
    wanted = {f"{key}{name}": v for key, module in modules.items() for name, v in module.state_dict().items()}
    known = {*wanted, *others}
    refuse(
        path,
        [k for k in (*wanted, *others) if k not in state],
        [k for k in state if k not in known and k not in spare],
        [f"{k} {list(state[k].shape)} for {list(v.shape)}" for k, v in wanted.items()
         if k in state and state[k].shape != v.shape],
    )  # fmt: skip
    for key, module in modules.items():
        found = {name: state[f"{key}{name}"] for name in module.state_dict()}
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()})
        settle(module.eval().requires_grad_(False))


def require(path: Path, state: Collection[str], wanted: Collection[str], known: tuple[str, ...]) -> None:
    """Raise InputError where one of the tensors `wanted`, from which sizes are read, is missing; the line lists what
    begins with none of `known` as well.
    """
    missing = [k for k in wanted if k not in state]
    if missing:
        refuse(path, missing, [k for k in state if not k.startswith(known)], [])


def open_pretrained(kind: type, folder: Path, spare: tuple[str, ...] = (), config: object = None) -> "nn.Module":
    """A transformers model of class `kind` from a folder, frozen, in float32; `spare` are beginnings of unused names.

    Raises InputError listing the names that are missing, not known, or of another shape.
    """
    import torch
    from transformers.utils import logging

    folder_of(folder)
    before, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its table of unused names would be the user's only, and is checked below
    logging.disable_progress_bar()
    try:
        model, said = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # configurations and weights of others fail in many ways
        raise InputError(f"{folder}: {kind.__name__} cannot load it ({type(error).__name__}: {_line(error)})") from None
    finally:
        logging.set_verbosity(before)
        if shown:
            logging.enable_progress_bar()
    spare = (*spare, "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
    refuse(
        folder,
        sorted(said["missing_keys"]),
        sorted(k for k in said["unexpected_keys"] if not k.startswith(spare)),
        sorted(f"{k} {list(a)} for {list(b)}" for k, a, b in said["mismatched_keys"]),
    )
    return settle(model.eval().requires_grad_(False))


def refuse(path: Path, missing: Sequence[str], unknown: Sequence[str], misshapen: Sequence[str]) -> None:
    """Raise InputError with one line that lists what does not fit, or nothing where all does."""
    lists = {"missing": missing, "not known": unknown, "of another shape": misshapen}
    said = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for what, names in lists.items() if names
    ]  # fmt: skip
    if said:
        raise InputError(f"{path}: weights do not fit the architecture: {'; '.join(said)}")


def device() -> str:
    """Where scorers run: on this process's own CUDA device where there is one, else "cpu"."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
