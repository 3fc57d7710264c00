"""Record folders of pictures without a meaning, for tests that need judgements but no model and no scorer."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from diffalign import folders
from diffalign.records import Image, Judgement, Prompt, Score, digest, group_id, pair, prompt_id

TEXTS = ("a red circle", "the blue square", "a large green square", "a small circle", "red and blue", "a photo")


def png(seed: int, size: tuple[int, int] = (32, 32)) -> bytes:
    """A picture of smooth random colours, (width, height) = size."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    sink = io.BytesIO()
    PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC).save(sink, format="PNG")
    return sink.getvalue()


def images(place: Path, per_prompt: int = 3, sizes: Sequence[tuple[int, int]] = ((32, 32),)) -> dict[str, list[Image]]:
    """An images folder at `place`; prompt id -> its images, every other one with a caption of its own."""
    prompts = [Prompt(prompt_id(text), text) for text in TEXTS]
    made: dict[str, list[Image]] = {}
    for n, prompt in enumerate(prompts):
        for index in range(per_prompt):
            width, height = sizes[(n + index) % len(sizes)]
            data = png(100 * n + index, (width, height))
            name, image = digest("picture", prompt.id, index), {"bytes": data, "path": None}
            caption = f"{prompt.text} on the left" if index % 2 else None
            known = {"caption": caption, "model": "none", "seed": 0, "index": index}
            row = Image(name, prompt.id, image, hashlib.sha256(data).hexdigest(), width, height, **known)
            made.setdefault(prompt.id, []).append(row)
    folders.begin(place, folders.Manifest("sample", {"world": per_prompt, "sizes": [list(s) for s in sizes]}, 1))
    folders.write_part(place, "prompts", 0, prompts)
    folders.write_part(place, "images", 0, [row for rows in made.values() for row in rows])
    return made


def judged(place: Path, rows: Sequence[Judgement], scores: Sequence[Score] = ()) -> Path:
    """Scores and judgements folders beside `place/images`; the judgements folder."""
    source = {"scorer": "test", "rows": digest(*(r.id for r in rows))}
    parent = (folders.parent(place / "scores", place / "images"),)
    folders.begin(place / "scores", folders.Manifest("score", source, 1, parents=parent))
    folders.write_part(place / "scores", "scores", 0, scores)
    parent = (folders.parent(place / "pairs", place / "scores"),)
    folders.begin(place / "pairs", folders.Manifest("pair", source, 1, parents=parent))
    folders.write_part(place / "pairs", "judgements", 0, rows)
    return place / "pairs"


def pairs(place: Path) -> Path:
    """Two pairs a prompt that share an image, one of them with a soft label the other way round."""
    rows, scores = [], []
    for prompt, (a, b, c) in images(place / "images").items():
        values = zip((a, b, c), (0.8, 0.5, 1.0), strict=True)
        scores += [Score(image.id, prompt, "test", "1", "none", value) for image, value in values]
        rows += [pair(prompt, a.id, b.id, 1.0, source="test", score_gap=0.3)]
        rows += [pair(prompt, a.id, c.id, 0.2, source="test", score_gap=-0.2)]
    return judged(place, rows, scores)


def ranked(place: Path) -> Path:
    """One ranking of three images a prompt."""
    rows = []
    for prompt, drawn in images(place / "images").items():
        ids = tuple(row.id for row in drawn)
        name = digest("judgement", *ids)
        rows.append(Judgement(name, group_id(prompt, ids), "ranking", ids, scores=(0.1, 0.9, 0.5), source="test"))
    return judged(place, rows)


def single(place: Path, kind: str = "unpaired") -> Path:
    """Three images a prompt: each by itself with its desirability, or together with their advantages."""
    rows = []
    for prompt, drawn in images(place / "images").items():
        ids = tuple(row.id for row in drawn)
        if kind == "advantages":
            known = {"scores": (-0.5, 1.5, -1.0), "source": "test"}
            rows.append(Judgement(digest("judgement", *ids), group_id(prompt, ids), kind, ids, **known))
            continue
        for n, i in enumerate(ids):
            name = digest("judgement", i)
            rows.append(Judgement(name, group_id(prompt, (i,)), kind, (i,), p=(1.0, 0.0, 0.5)[n], source="test"))
    return judged(place, rows)
