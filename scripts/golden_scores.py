"""Do the judges give the numbers that their authors publish? The check to run where the weights are.

    python scripts/golden_scores.py --imagereward-images ImageReward/assets/images --hps-image demo_image.jpg
    python scripts/golden_scores.py --imagereward ImageReward.pt --imagereward-images DIR

The pictures are those of the official repositories (ImageReward: assets/images/1.webp to 4.webp, README of the
repository; HPSv2: its demonstration picture under the prompt "cat with horn", by v2.1). Prints a table of published and
found numbers and exits with 1 where one is further away than its tolerance; what is not given is not checked.
"""

import sys
from pathlib import Path

import PIL.Image
import tyro

from diffalign import scorers
from diffalign.records import InputError

IMAGEREWARD_PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
IMAGEREWARD = {"1.webp": 0.58116, "2.webp": 0.27453, "3.webp": -1.41318, "4.webp": -2.02957}
HPS_PROMPT, HPS = "cat with horn", 0.288
_HPS = ("hpsv2.1", "hpsv2.1_aliased")
# the README's numbers were made in float32; HPSv2.1's is given to three digits, from half precision
IMAGEREWARD_TOLERANCE, HPS_TOLERANCE = 1e-3, 2e-3


def main(
    *,
    imagereward_images: Path | None = None,
    hps_image: Path | None = None,
    imagereward: str = "",
    hps: str = "",
) -> int:
    """Compare published with found scores.

    Args:
        imagereward_images: Folder with 1.webp to 4.webp of ImageReward's repository.
        hps_image: HPSv2's demonstration picture.
        imagereward: Place of ImageReward's weights; empty looks into the hub cache.
        hps: Place of HPSv2.1's weights; empty looks into the hub cache.
    """
    rows: list[tuple[str, str, float, float, float]] = []
    if imagereward_images is not None:
        names = list(IMAGEREWARD)
        pictures = [PIL.Image.open(imagereward_images / name).convert("RGB") for name in names]
        found = _load("imagereward", imagereward)(pictures, [IMAGEREWARD_PROMPT] * len(names))
        rows += [
            ("imagereward", name, IMAGEREWARD[name], value, IMAGEREWARD_TOLERANCE)
            for name, value in zip(names, found.tolist(), strict=True)
        ]
    if hps_image is not None:
        picture = PIL.Image.open(hps_image).convert("RGB")
        for name in _HPS:
            rows.append((name, hps_image.name, HPS, _load(name, hps)([picture], [HPS_PROMPT])[0], HPS_TOLERANCE))
    if not rows:
        raise InputError("nothing to check: give --imagereward-images DIR or --hps-image FILE")
    print(f"{'scorer':<17}{'image':<18}{'published':>10}{'found':>10}{'off by':>10}")
    for name, image, published, value, _ in rows:
        print(f"{name:<17}{image:<18}{published:>10.5f}{value:>10.5f}{abs(value - published):>10.5f}")
    # which antialiasing the published HPS number was made with is not known: one of both has to give it
    hit = {n for n, _, p, v, t in rows if abs(v - p) <= t}
    far = [n for n, _, p, v, t in rows if abs(v - p) > t and not (n.startswith("hpsv2.1") and hit & {n, *_HPS})]
    print("as published" if not far else f"not as published: {', '.join(sorted(set(far)))}")
    return 1 if far else 0


def _load(name: str, place: str) -> scorers.Scorer:
    return scorers.load(f"{name}={place}" if place else name)


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main))
    except (InputError, OSError) as error:
        sys.exit(f"golden_scores: {error}")
