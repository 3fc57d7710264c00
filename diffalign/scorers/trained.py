"""A scorer of one's own: a tower of the CLIP family and a head a dimension, as `diffalign train-scorer` writes them."""

import json
from dataclasses import dataclass
from pathlib import Path

from diffalign import places
from diffalign.records import InputError, digest
from diffalign.scorers.base import Score, Scorer
from diffalign.scorers.checkpoints import TOKENIZER, WEIGHTS, locate, revision

FORMAT = 1
CARD, HEAD, TOWER = "scorer.json", "head.safetensors", "tower"
_FILES = ("config.json", "open_clip_config.json", "preprocessor_config.json", *WEIGHTS[:2], "*.safetensors", *TOKENIZER)


@dataclass(frozen=True)
class Card:
    """`scorer.json`: what a trained scorer is.

    Attributes:
        name: What records call it.
        dimensions: Of what was judged, one head each.
        slopes: What each head's score is multiplied by, so that differences are log-odds on held-out prompts.
        tower: Where the towers lie: "tower" inside the folder where they were trained too, else as they were named.
        hash: Of the towers' files, where they were not trained.
        hidden: Width of the heads' common layer; 0 for linear heads.
    """

    name: str
    dimensions: tuple[str, ...]
    slopes: tuple[float, ...]
    tower: str
    hash: str
    hidden: int
    format: int = FORMAT


def trained(place: str) -> Scorer:
    """Log-odds of preference, unbounded, by a scorer that `train-scorer` wrote.

    `place` is "FOLDER" or "FOLDER,DIMENSION"; without a dimension, the mean of all of them. P(first is better) =
    sigmoid(difference), by the temperature fitted on held-out prompts.
    """
    if not place:
        raise InputError("scorer trained: needs a folder of `diffalign train-scorer`, trained=FOLDER")
    path, _, dimension = place.partition(",")
    folder = Path(path)
    card = read_card(folder)
    if dimension and dimension not in card.dimensions:
        raise InputError(f"{folder}: has no dimension {dimension!r}, expected one of {', '.join(card.dimensions)}")
    tower = tower_of(card, folder)
    opened = digest(revision(folder / HEAD, tower), *card.slopes, dimension)
    name = f"{card.name}:{dimension}" if dimension else card.name
    said = f"the tower's own, dimension {dimension or 'mean'}"

    def load() -> Score:
        from diffalign.scorers.dimensions import Trained

        return Trained(folder, tower, card, dimension)

    return Scorer(name, opened, said, load, lambda _: 1.0, towers=True)


def read_card(folder: Path) -> Card:
    """The card of a trained scorer's folder; raises InputError where there is none that can be read."""
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a folder that `diffalign train-scorer` finished")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["format"] != FORMAT:
            raise InputError(f"{path}: format {known['format']}, this version reads {FORMAT}")
        lists = {name: tuple(known[name]) for name in ("dimensions", "slopes")}
        card = Card(**{**known, **lists})
        if not card.dimensions or len(card.slopes) != len(card.dimensions) or not all(s > 0 for s in card.slopes):
            raise ValueError("one positive slope a dimension")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no card of a scorer ({type(error).__name__}: {error})") from None
    return card


def tower_of(card: Card, folder: Path) -> Path:
    """Where the towers of a trained scorer lie; raises InputError where they are not there, or others now."""
    inside = folder / TOWER
    if card.tower == TOWER:
        return inside
    beside = folder / card.tower
    found = beside if beside.is_dir() else find_tower(card.tower, fetch=False)
    if revision(found) != card.hash:
        raise InputError(f"{found}: is another tower than the one that {folder} was trained on")
    return found


def find_tower(place: str, *, fetch: bool = True) -> Path:
    """The folder of a tower: a local one, a shipped one ("shapes/clip"), or a hub id, which is fetched where named."""
    if not Path(place).exists() and place.startswith("shapes/"):
        return places.asset(place)
    if fetch or Path(place).exists():
        return locate(place, place, _FILES)
    return locate("", place, _FILES)
