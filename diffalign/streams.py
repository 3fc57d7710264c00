"""Randomness as a function of names: a run depends neither on batch and world size nor on where it was cut."""

import hashlib

import numpy as np


def stream(kind: str, seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy Philox generator keyed by blake2b-128 of (kind, seed, names).

    Kinds in use: order(epoch); time, noise, crop, flip, caption(group, draw), noise also with the image id where it is
    independent within a group; inversion(group, draw, image, step); dropout(groups and draws of a micro-batch);
    sampling(prompt, index); pairing(prompt); adapter(parameter); probe;
    bootstrap and permutation of a comparison; world, caption for the embedded world.
    """
    key = int.from_bytes(_key(kind, seed, *names), "little")
    return np.random.Generator(np.random.Philox(key=key))


def name(kind: str, seed: int, *names: str | int) -> str:
    """The stream's key as 32 hexadecimal digits: equal names are equal noise."""
    return _key(kind, seed, *names).hex()


def _key(kind: str, seed: int, *names: str | int) -> bytes:
    text = "\x1f".join([kind, str(seed), *map(str, names)])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def normal(kind: str, seed: int, *names: str | int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of a stream, float32, of the given shape."""
    return stream(kind, seed, *names).standard_normal(shape, dtype=np.float32)
