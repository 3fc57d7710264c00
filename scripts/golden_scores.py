"""Do the judges give the numbers that their authors publish? The check to run where the weights are.

    python scripts/golden_scores.py --imagereward-images ImageReward/assets/images --hps-image demo_image.jpg
    python scripts/golden_scores.py --numbers official.csv

Published numbers of single pictures are known here of two: ImageReward (its repository's README, assets/images/1.webp
to 4.webp) and HPSv2.1 (its demonstration picture under "cat with horn"). For any other scorer, make them with its
authors' code and give them as a table: scorer (as `diffalign score` takes it), image (a file, from the table's
folder), prompt, value, tolerance. Prints expected and found numbers, and of each scorer whether it gives them; exits
with 1 where one is further away than its tolerance, but for HPSv2.1 in one of its two ways of resizing. What is not
given is not checked.
"""

import csv
import dataclasses
import math
import sys
from pathlib import Path

import tyro

from diffalign import decoding, scorers
from diffalign.records import InputError

IMAGEREWARD_PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
IMAGEREWARD = {"1.webp": 0.58116, "2.webp": 0.27453, "3.webp": -1.41318, "4.webp": -2.02957}
HPS_PROMPT, HPS = "cat with horn", 0.288
_HPS = ("hpsv2.1", "hpsv2.1_aliased")
# the README's numbers were made in float32; HPSv2.1's is given to three digits, from half precision
IMAGEREWARD_TOLERANCE, HPS_TOLERANCE = 1e-3, 2e-3
_FIELDS = ("scorer", "image", "prompt", "value", "tolerance")


@dataclasses.dataclass(frozen=True)
class Number:
    """What a scorer, with its place after "=", should give a picture under a prompt."""

    scorer: str
    place: str
    image: Path
    prompt: str
    value: float
    tolerance: float


def main(
    *,
    imagereward_images: Path | None = None,
    hps_image: Path | None = None,
    imagereward: str = "",
    hps: str = "",
    numbers: Path | None = None,
) -> int:
    """Compare expected with found scores.

    Args:
        imagereward_images: Folder with 1.webp to 4.webp of ImageReward's repository.
        hps_image: HPSv2's demonstration picture.
        imagereward: Place of ImageReward's weights; empty looks into the hub cache.
        hps: Place of HPSv2.1's weights; empty looks into the hub cache.
        numbers: CSV of numbers made with the authors' own code: scorer, image, prompt, value, tolerance.
    """
    known: list[Number] = []
    if imagereward_images is not None:
        known += [
            Number("imagereward", imagereward, imagereward_images / name, IMAGEREWARD_PROMPT, value,
                   IMAGEREWARD_TOLERANCE)
            for name, value in IMAGEREWARD.items()
        ]  # fmt: skip
    if hps_image is not None:
        known += [Number(name, hps, hps_image, HPS_PROMPT, HPS, HPS_TOLERANCE) for name in _HPS]
    published = len(known)
    if numbers is not None:
        known += table(numbers)
    if not known:
        raise InputError("nothing to check: give --imagereward-images DIR, --hps-image FILE or --numbers FILE")
    far: dict[tuple[str, bool], bool] = {}
    print(f"{'scorer':<17}{'image':<18}{'expected':>10}{'found':>10}{'off by':>10}")
    for n, (number, found) in enumerate(zip(known, _found(known), strict=True)):
        off = abs(found - number.value)
        print(f"{number.scorer:<17}{number.image.name:<18}{number.value:>10.5f}{found:>10.5f}{off:>10.5f}")
        # what is no number is not near
        key = number.scorer, n < published
        far[key] = far.get(key, False) or not off <= number.tolerance
    for (scorer, is_published), is_far in far.items():
        what = "as published" if is_published else "as expected"
        print(f"{scorer}: {'not ' if is_far else ''}{what}")
    # which way of resizing the published HPS number was made with is not known
    near = [scorer for scorer in _HPS if far.get((scorer, True)) is False]
    if len(near) == 1:
        (other,) = set(_HPS) - set(near)
        print(f"only {near[0]} gives HPSv2.1's number, so take it for scores that are to be compared, not {other}")
    excused = {(scorer, True) for scorer in _HPS} if near else set()
    return 1 if any(is_far and key not in excused for key, is_far in far.items()) else 0


def table(path: Path) -> list[Number]:
    """The numbers of a CSV; raises InputError naming file, row and field of what is wrong."""
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [field for field in _FIELDS if field not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: has no column {', '.join(missing)}, expected {', '.join(_FIELDS)}")
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            if any(row[field] is None for field in _FIELDS) or None in row:
                raise InputError(f"{where}: expected {len(_FIELDS)} fields, {', '.join(_FIELDS)}")
            name, _, place = row["scorer"].partition("=")
            parts = {field: _number(row[field], f"{where}: {field}") for field in ("value", "tolerance")}
            found.append(Number(name, place, path.parent / row["image"], row["prompt"], **parts))
    return found


def _number(text: str, where: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{where} = {text!r}, expected a number")
    return found


def _found(known: list[Number]) -> list[float]:
    """What the scorers give, each loaded once and asked all at once."""
    found: dict[int, float] = {}
    for scorer, place in dict.fromkeys((number.scorer, number.place) for number in known):
        mine = [n for n, number in enumerate(known) if (number.scorer, number.place) == (scorer, place)]
        pictures = [decoding.rgb(known[n].image.read_bytes()) for n in mine]
        values = _load(scorer, place)(pictures, [known[n].prompt for n in mine])
        found |= dict(zip(mine, values.tolist(), strict=True))
    return [found[n] for n in range(len(known))]


def _load(name: str, place: str) -> scorers.Scorer:
    return scorers.load(f"{name}={place}" if place else name)


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main))
    except (InputError, *decoding.ERRORS) as error:
        sys.exit(f"golden_scores: {error}")
