"""What all builders learn from: scenes by number, their pictures rendered once, captions of the training split."""

from pathlib import Path

import numpy as np

from diffalign.shapes.captions import LENGTHS, caption, corrupt, parse, split_of
from diffalign.shapes.scene import Scene, render, sample_scene

SIZE = 40960
PART = 2048
PAIRS = 0.3


def scene(number: int) -> Scene:
    """Scene of the bank; three in ten hold two objects."""
    rng = np.random.default_rng([7, number])
    return sample_scene(rng, 2 if rng.random() < PAIRS else 1)


def pictures(work: Path) -> list[np.ndarray]:
    """The pictures of scenes 0 … SIZE-1 in parts, uint8, (PART, 64, 64, 3), mapped from disk; rendered if need be."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part-{i:03d}.npy" for i in range(SIZE // PART)]
    for i, path in enumerate(paths):
        if not path.exists():
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, np.stack([render(scene(i * PART + k)) for k in range(PART)]))
            temporary.rename(path)
            print(f"bank: {(i + 1) * PART} of {SIZE} pictures", flush=True)
    return [np.load(path, mmap_mode="r") for path in paths]


def take(parts: list[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The pictures with these numbers, uint8, (n, 64, 64, 3)."""
    return np.stack([parts[n // PART][n % PART] for n in numbers])


def describe(subject: Scene, rng: np.random.Generator, wrong: float = 0.0) -> str:
    """A caption of the training split; with probability `wrong` it has an error in one or two attributes.

    Three in five are compositional. Redrawn until its meaning is none of the dev or test split: those are held out.
    """
    while True:
        told = corrupt(subject, rng, int(rng.integers(1, 3))) if rng.random() < wrong else subject
        text = caption(told, LENGTHS[int(rng.choice(3, p=(0.2, 0.6, 0.2)))], rng)
        if split_of(parse(text)) == "train":
            return text
