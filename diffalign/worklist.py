"""Prompts times seeds as a flat list in fixed batches, one size a batch; a longer list only goes on from a shorter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffalign.records import Prompt

Size = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """One batch: the places `start` to `stop` of the endless list of `prompts` (all of one size), index by index."""

    prompts: Sequence[Prompt]
    size: Size
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def work(self) -> list[tuple[Prompt, int]]:
        """(prompt, index) of its pictures."""
        n = len(self.prompts)
        return [(self.prompts[k % n], k // n) for k in range(self.start, self.stop)]


def cuts(prompts: Sequence[Prompt], sizes: Mapping[str, Size], native: Size, per_prompt: int, batch: int) -> list[Cut]:
    """The batches of all prompts times `per_prompt`, by the index and then the place of their first picture.

    So the batches of a smaller `per_prompt` are the first ones, and of each size at most the last of them grows.
    """
    buckets: dict[Size, list[int]] = {}
    for place, prompt in enumerate(prompts):
        buckets.setdefault(sizes.get(prompt.id, native), []).append(place)
    found = []
    for size, places in buckets.items():
        members, n = [prompts[place] for place in places], len(places) * per_prompt
        for start in range(0, n, batch):
            first = (start // len(places), places[start % len(places)])
            found.append((first, Cut(members, size, start, min(start + batch, n))))
    return [cut for _, cut in sorted(found, key=lambda entry: entry[0])]
