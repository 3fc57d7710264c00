"""What a scorer learns from: pictures that are prepared once, or their embeddings that are computed once."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from diffalign import decoding, folders
from diffalign.cache import Store, fill
from diffalign.choices import Choices
from diffalign.fitting import Learner
from diffalign.scorers.checkpoints import device
from diffalign.scorers.dimensions import Heads, Tower
from diffalign.scorers.pixels import stacked
from diffalign.scorers.towers import normal

# Pictures seen at once where nothing is learnt.
_SEEN = 32


def lowered(tower: Tower) -> Tower:
    """The tower with its products in bfloat16; its weights stay as they are, its embeddings are float32."""

    def low(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def within(given: Any) -> torch.Tensor:
            with torch.autocast(torch.device(device()).type, torch.bfloat16):
                return call(given).float()

        return within

    return dataclasses.replace(tower, see=low(tower.see), read=low(tower.read))


def learner(
    folder: Path, known: Choices, tower: Tower, key: Mapping[str, str], mode: str, hidden: int, place: Path
) -> tuple[Choices, Learner]:
    """(the choices whose pictures can be read, what learns): pictures are prepared, or seen, once."""
    kind = "pixels" if mode == "full" else "embeddings"
    store = Store(place, f"scorer-{kind}", {**key, "device": device().partition(":")[0]})
    known = known.without(_fill(store, folder, known, tower, mode))
    names = list(known.pictures)
    tower.model.requires_grad_(mode == "full")

    def pixels(shown: np.ndarray) -> torch.Tensor:
        return tower.see(store.rows([names[i] for i in shown])["values"].to(device()))

    def embeddings(shown: np.ndarray) -> torch.Tensor:
        return store.rows([names[i] for i in shown])["values"].to(device())

    if mode == "full":
        see, read = pixels, lambda asked: tower.read([known.texts[i] for i in asked])
    else:
        with torch.no_grad():
            said = torch.cat([normal(tower.read([text])) for text in known.texts])
        see, read = embeddings, lambda asked: said[asked]
    with torch.no_grad():
        width = tower.read(list(known.texts[:1])).shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = Heads(width, len(known.dimensions), hidden, tower.scale).to(device())
    tied = [bool(known.tie[known.dimension == k].any()) for k in range(len(known.dimensions))]
    log_tie = nn.Parameter(torch.tensor([0.0 if t else -torch.inf for t in tied], device=device()))
    return known, Learner(see, read, heads, tower.model if mode == "full" else None, log_tie)


def _fill(store: Store, folder: Path, known: Choices, tower: Tower, mode: str) -> dict[str, str]:
    """Put what is learnt from into the store; why a picture is missing, by its hash."""
    missing = store.missing(known.pictures)
    held: dict[str, PIL.Image.Image] = {}
    broken: dict[str, str] = {}

    def looked() -> Iterator[list[str]]:
        hashes = {image: sha for sha, image in known.pictures.items() if sha in missing}
        files = folders.image_bytes(folder, hashes)
        while some := list(itertools.islice(files, _SEEN)):
            held.clear()
            for image, data in some:
                try:
                    held[hashes[image]] = decoding.rgb(data)
                except decoding.ERRORS as error:
                    broken[hashes[image]] = f"image {image}: {error}"
            if held:
                yield list(held)

    def compute(names: list[str]) -> dict[str, torch.Tensor]:
        found = stacked(tower.preprocess, [held[name] for name in names])
        return {"values": found if mode == "full" else normal(tower.see(found.to(device())))}

    with torch.no_grad():
        fill(store, looked(), compute)
    return broken
