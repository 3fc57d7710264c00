"""Judged groups of rendered pictures: the scene that a caption describes, against scenes that break it."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from diffalign import folders
from diffalign.records import Image, Judgement, Prompt, digest, group_id, pair, prompt_id
from diffalign.shapes.captions import Demand, caption, corrupt, demand_of, parse, split_of
from diffalign.shapes.scene import PLACES, SHAPES, Scene, arrange, render, sample_scene

# Images of a group by kind of judgement.
GROUP = {"pair": 2, "unpaired": 1, "ranking": 4, "advantages": 4}


def wrong(wanted: Demand, scene: Scene) -> int:
    """How many of the demanded attributes the scene does not have."""
    have = demand_of(scene)
    asked = [(wanted.background, have.background), (wanted.place, have.place), (wanted.relation, have.relation)]
    for one, other in zip(wanted.objects, have.objects, strict=True):
        asked += [(getattr(one, name), getattr(other, name)) for name in ("shape", "colour", "size", "fill")]
    return sum(a is not None and a != b for a, b in asked)


def groups(split: str, count: int, size: int) -> Iterator[tuple[str, list[Scene]]]:
    """(caption of the split, scenes with 0, 1, ... size - 1 demanded attributes wrong); of two, 0 and one to three."""
    rng, seen = np.random.default_rng([11, len(split), size]), set()
    while len(seen) < count:
        scene = sample_scene(rng, 2 if rng.random() < 0.3 else 1)
        text = caption(scene, "compositional", rng)
        wanted = parse(text)
        if split_of(wanted) != split or text in seen:
            continue
        scenes = [scene]
        for errors in range(1, size) if size > 2 else [int(rng.integers(1, 4))]:
            others = (corrupt(scene, rng, errors) for _ in range(50))
            scenes += [next((other for other in others if wrong(wanted, other) == errors), scene)]
        if scenes.count(scene) == 1:
            seen.add(text)
            yield text, scenes


def write_world(place: Path, split: str, count: int, kinds: Sequence[str]) -> None:
    """An images folder of rendered groups, and beside it one folder of judgements a kind; what is there is kept."""
    if all((place / kind / "diffalign.json").exists() for kind in kinds):
        return
    size = max(GROUP[kind] for kind in kinds)
    prompts, images, rows = [], [], {kind: [] for kind in kinds}
    for number, (text, scenes) in enumerate(groups(split, count, size)):
        prompt = Prompt(prompt_id(text), text)
        pictures = [picture(prompt.id, index, scene) for index, scene in enumerate(scenes)]
        prompts.append(prompt)
        images += pictures
        for kind in kinds:
            rows[kind] += judged(kind, prompt.id, [p.id for p in pictures], 1 + number % (size - 1))
    folders.begin(place / "images", folders.Manifest("sample", {"split": split, "groups": count, "of": size}, 1))
    folders.write_part(place / "images", "prompts", 0, prompts)
    folders.write_part(place / "images", "images", 0, images)
    for kind in kinds:
        parents = (folders.parent(place / kind, place / "images"),)
        folders.begin(place / kind, folders.Manifest("pair", {"kind": kind}, 1, parents=parents))
        folders.write_part(place / kind, "judgements", 0, rows[kind])


def write_taste(place: Path, split: str, count: int) -> None:
    """Pictures of one taste, each liked: a large filled red object on pink; what is there is kept.

    Captions are true and short: most of the taste is not what they say.
    """
    if (place / "taste" / "diffalign.json").exists():
        return
    rng, prompts, images = np.random.default_rng([12, len(split)]), {}, []
    while len(images) < count:
        kind = (str(rng.choice(SHAPES)), "red", "large", "filled")
        scene = arrange([kind], "pink", str(rng.choice(list(PLACES))), rng)
        text = caption(scene, "short", rng)
        if split_of(parse(text)) == split:
            prompt = prompts.setdefault(text, Prompt(prompt_id(text), text))
            images.append(picture(prompt.id, len(images), scene))
    source = place / "taste-images"
    folders.begin(source, folders.Manifest("sample", {"split": split, "taste": count}, 1))
    folders.write_part(source, "prompts", 0, list(prompts.values()))
    folders.write_part(source, "images", 0, images)
    rows = [
        Judgement(digest("judgement", i.id), group_id(i.prompt_id, (i.id,)), "unpaired", (i.id,), p=1.0) for i in images
    ]
    folders.begin(
        place / "taste",
        folders.Manifest("pair", {"kind": "taste"}, 1, parents=(folders.parent(place / "taste", source),)),
    )
    folders.write_part(place / "taste", "judgements", 0, rows)


def picture(prompt: str, index: int, scene: Scene) -> Image:
    """The record of a rendered scene."""
    sink = io.BytesIO()
    PIL.Image.fromarray(render(scene)).save(sink, format="PNG")
    data, name = sink.getvalue(), digest("rendered", prompt, index)
    shown = {"bytes": data, "path": None}
    return Image(name, prompt, shown, hashlib.sha256(data).hexdigest(), 64, 64, model="renderer", index=index)


def judged(kind: str, prompt: str, ids: Sequence[str], worse: int) -> list[Judgement]:
    """Judgements of a group whose image i has i attributes wrong; pairs and unpaired ones are of images 0 and `worse`.

    Scores of a ranking are shares of duels won; advantages are these with mean 0 and deviation 1.
    """
    if kind == "pair":
        return [pair(prompt, ids[0], ids[worse], 1.0, source="rendered", score_gap=float(worse))]
    if kind == "unpaired":
        told = ((ids[0], 1.0), (ids[worse], 0.0))
        return [Judgement(digest("judgement", i), group_id(prompt, (i,)), kind, (i,), p=p) for i, p in told]
    merit = 1 - np.arange(len(ids)) / (len(ids) - 1)
    merit = merit if kind == "ranking" else (merit - merit.mean()) / merit.std()
    name = digest("judgement", kind, *ids)
    return [Judgement(name, group_id(prompt, ids), kind, tuple(ids), scores=tuple(map(float, merit)))]
