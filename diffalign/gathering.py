"""Pictures -> preferences where nobody scored them: real ones against generated ones, good ones, sets by swaps."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffalign import decoding, folders, rules, sets
from diffalign.records import InputError, Judgement, digest, group_id
from diffalign.records import pair as pair_record
from diffalign.scorers import features
from diffalign.streams import stream

PLACES = ("sample", "score", *folders.JUDGED)
RULES = ("swap_vendi", "swap_frechet", "real_vs_generated", "desirable")
# Pictures decoded at once for their features.
_BATCH = 64


def of_images(
    data: Path, rule: str, flags: Mapping[str, Any], counts: Counter[str]
) -> tuple[list[Judgement], tuple[str, int]]:
    """Judgements of the images of a folder; (by what, of how many prompts)."""
    if rule == "desirable":
        rows = [good(prompt, image, rule) for prompt, of in best(data).items() for image in of]
        return rows, ("nobody", len(best(data)))
    drawn = _by_prompt(data)
    if rule == "real_vs_generated":
        real = best(flags["real"])
        if same := {image for of in real.values() for image in of} & {image for of in drawn.values() for image in of}:
            raise InputError(f"{flags['real']}: image {min(same)} is also among the generated ones of {data}")
        return _against(real, drawn, rule, counts), ("nobody", len(drawn))
    return _swapped(data, drawn, rule, flags, counts)


def good(prompt: str, image: str, rule: str, name: str | None = None) -> Judgement:
    """The judgement that an image is desirable."""
    group = group_id(prompt, (image,))
    key = digest("judgement", group, rule, name)
    return Judgement(key, group, "unpaired", (image,), p=1.0, source=rule, rater=name)


def shared(real: Path, count: int, share: float, seed: int) -> list[Judgement]:
    """As many real images, drawn without replacement, as make up `share` of all beside `count` others."""
    wanted = round(share / (1 - share) * count)
    every = [(prompt, image) for prompt, images in sorted(best(real).items()) for image in images]
    if wanted > len(every):
        raise InputError(
            f"{real}: holds {len(every)} real images; a share of {share:g} beside {count} others needs {wanted}"
        )
    taken = stream("pairing", seed, "real").permutation(len(every))[:wanted]
    return [good(*every[i], rule="real") for i in sorted(taken.tolist())]


def best(folder: Path) -> dict[str, list[str]]:
    """Prompt id -> images: all of a folder of pictures; of a folder of judgements those that were judged best."""
    stage = folders.open_folder(folder, *PLACES).stage
    rows = [] if stage in ("sample", "score") else folders.records(folder, "judgements")
    winners = {image for row in rows if row.status == "decided" for image in _winner(row)}
    return _by_prompt(folder, winners if rows else None)


def _winner(row: Judgement) -> tuple[str, ...]:
    if row.kind == "pair":
        return () if row.p == 0.5 else (row.images[row.p < 0.5],)
    if row.kind == "unpaired":
        return row.images if row.p > 0.5 else ()
    return (row.images[int(np.argmax(row.scores))],)


def _by_prompt(folder: Path, kept: set[str] | None = None) -> dict[str, list[str]]:
    """Prompt id -> ids of its images, as they were drawn; only the `kept` ones where given."""
    folders.open_folder(folder, *PLACES)
    rows = [row for name, row in folders.image_rows(folder).items() if kept is None or name in kept]
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda r: (r["prompt_id"], r["index"] or 0, r["id"])):
        found.setdefault(row["prompt_id"], []).append(row["id"])
    return found


def _against(
    real: Mapping[str, list[str]], drawn: Mapping[str, list[str]], rule: str, counts: Counter[str]
) -> list[Judgement]:
    counts["prompts without a real image"] = len(drawn.keys() - real.keys())
    counts["prompts without a generated image"] = len(real.keys() - drawn.keys())
    both = [p for p in drawn if p in real]
    return [
        pair_record(p, better, worse, 1.0, source=rule)
        for p in both
        for better, worse in rules.real_vs_generated(real[p], drawn[p])
    ]


def _swapped(
    data: Path, drawn: Mapping[str, list[str]], rule: str, flags: Mapping[str, Any], counts: Counter[str]
) -> tuple[list[Judgement], tuple[str, int]]:
    """DRAGON: the images of a prompt two by two, the first of each two in the better set unless swapped."""
    twos = [(p, a, b) for p, of in drawn.items() for a, b in zip(of[::2], of[1::2], strict=False)]
    counts["images without another one"] = sum(len(of) % 2 for of in drawn.values())
    if not twos:
        raise InputError(f"{data}: no prompt has two images; left out: {counts['images without another one']} images")
    name = flags["features"]
    function, _ = features.load(name)
    seen = partial(_seen, function=function, name=name)
    first, second = seen(data, [a for _, a, _ in twos]), seen(data, [b for _, _, b in twos])
    score = sets.vendi
    if rule == "swap_frechet":
        place = flags["exemplars"]
        wanted = seen(place, [image for of in _by_prompt(place).values() for image in of])
        score = lambda found: -sets.frechet(found, wanted)  # noqa: E731
    swapped = rules.swaps(first, second, score, stream("pairing", flags["seed"], rule))
    better = np.where(swapped[:, None], second, first)
    rows = [
        pair_record(p, *((b, a) if turned else (a, b)), 1.0, source=rule, rater=name)
        for (p, a, b), turned in zip(twos, swapped, strict=True)
    ]
    return rows, (f"{name}, set score {score(first):.4g} -> {score(better):.4g}", len(drawn))


def _seen(folder: Path, wanted: Iterable[str], *, function: Callable[..., Any], name: str) -> np.ndarray:
    """Features of images, in the order wanted, (images, d)."""
    order = list(wanted)
    found: dict[str, np.ndarray] = {}
    batch: dict[str, Any] = {}
    for number, (image, data) in enumerate(folders.image_bytes(folder, order), 1):
        try:
            batch[image] = decoding.rgb(data)
        except decoding.ERRORS as error:
            raise InputError(f"{folder}: image {image} cannot be decoded ({error})") from None
        if len(batch) == _BATCH or number == len(set(order)):
            rows = features.checked(function(list(batch.values())), len(batch), name)
            found |= dict(zip(batch, rows, strict=True))
            batch = {}
    return np.stack([found[image] for image in order])
