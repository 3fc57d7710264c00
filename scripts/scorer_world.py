"""What `diffalign train-scorer` learns of the embedded world's raters: the share of noise-free choices it predicts.

    python scripts/scorer_world.py --out build/scorer [--pictures rendered] [--prompts 1000] [-- --steps 800 …]
    python scripts/scorer_world.py --out build/scorer --split dev -- …    # to choose settings by

Four pictures a prompt, rendered with 0 to 3 of the demanded attributes wrong, or drawn by the embedded model; three
raters (literal, warm, cool: a dimension each) vote once on each two of them, with noise; pictures whose utilities
differ by 0.02 or less are equal to them. A scorer with three heads learns from the votes. Of pictures of other prompts,
of which it has seen nothing, the utilities without noise say which is better; printed is the share that the scorer
names, of the pairs that are not equal to the rater, and of all whose utilities differ at all: of a tenth of the pairs
the warm and the cool rater see the same, and by less than 0.001 in how exactly the renderer's edges are read, which
is nobody's choice. Beside it stands the share of the embedded CLIP as it was. What is there is not made again.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
from learns_world import groups, picture

from diffalign import decoding, folders, parsing, sampling, scoring
from diffalign.intervals import bootstrap, prompt_means
from diffalign.records import InputError, Prompt, pair, prompt_id
from diffalign.shapes.captions import prompts
from diffalign.shapes.raters import COOL, LITERAL, WARM, utility, vote
from diffalign.shapes.reading import read
from diffalign.streams import stream
from diffalign.train_scorer import train_scorer

PER_PROMPT, TIE = 4, 0.02
RATERS = {rater.name: dataclasses.replace(rater, tie=TIE) for rater in (LITERAL, WARM, COOL)}


def pictures(place: Path, kind: str, split: str, count: int) -> Path:
    """An images folder of `count` prompts of a split."""
    if kind == "drawn":
        listed = place.with_suffix(".txt")
        folders.write_atomically(listed, ("\n".join(prompts(split, count)) + "\n").encode())
        sampling.sample(model="shapes/sdxl", prompts=listed, per_prompt=PER_PROMPT, seed=1, batch=64, out=place)
        return place
    if not (place / "diffalign.json").exists():
        made = [(prompt_id(text), text, scenes) for text, scenes in groups(split, count, PER_PROMPT)]
        rows = [picture(name, index, scene) for name, _, scenes in made for index, scene in enumerate(scenes)]
        folders.begin(place, folders.Manifest("sample", {"split": split, "rendered": count}, 1))
        folders.write_part(place, "prompts", 0, [Prompt(name, text) for name, text, _ in made])
        folders.write_part(place, "images", 0, rows)
    return place


def utilities(place: Path) -> dict[str, dict[str, tuple[float, ...]]]:
    """Prompt id -> image id -> its utility to each rater; kept beside the pictures."""
    path = place.with_suffix(".json")
    if not path.is_file():
        texts, found = folders.texts(place), {}
        rows = folders.image_rows(place)
        for name, data in folders.image_bytes(place, rows):
            seen, prompt = read(np.asarray(decoding.rgb(data))), rows[name]["prompt_id"]
            found.setdefault(prompt, {})[name] = [utility(r, seen, texts[prompt]) for r in RATERS.values()]
        folders.write_atomically(path, json.dumps(found).encode())
    return json.loads(path.read_text())


def votes(images: Path, out: Path) -> Path:
    """A folder of judgements: each rater's vote on each two pictures of a prompt."""
    if (out / "diffalign.json").exists():
        return out
    rows = []
    for prompt, known in sorted(utilities(images).items()):
        for a, b in itertools.combinations(sorted(known), 2):
            for n, rater in enumerate(RATERS.values()):
                rng = stream("world", 0, "vote", rater.name, a, b)
                p = float(vote(rater, known[a][n], known[b][n], rng))
                status = "tie" if p == 0.5 else "decided"
                known_as = {"rater": rater.name, "dimension": rater.name, "status": status}
                rows.append(pair(prompt, a, b, p, source="rater", **known_as))
    folders.begin(out, folders.Manifest("pair", {"raters": list(RATERS)}, 1, (folders.parent(out, images),)))
    folders.write_part(out, "judgements", 0, rows)
    return out


def shares(scores: Path, images: Path, scorer: str, number: int) -> list[tuple[float, float, float, int]]:
    """(share right, its 95 % interval over prompts, pairs) of what the rater chooses, and where utilities differ."""
    table = folders.read(scores, "scores", ["image_id", "scorer", "value"]).to_pylist()
    value = {row["image_id"]: row["value"] for row in table if row["scorer"] == scorer}
    found = []
    for least in (TIE, 1e-9):
        hits, place = [], []
        for k, known in enumerate(utilities(images).values()):
            for a, b in itertools.combinations(known, 2):
                gap = known[a][number] - known[b][number]
                if abs(gap) > least:
                    hits.append(float((value[a] - value[b]) * gap > 0))
                    place.append(k)
        _, place = np.unique(place, return_inverse=True)
        means = prompt_means(np.array(hits), place)
        low, high = bootstrap(means[None], 2000, stream("bootstrap", 0, "scorer world"))[0]
        found.append((float(np.mean(hits)), float(low), float(high), len(hits)))
    return found


def main() -> None:
    """Make, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", choices=("rendered", "drawn"), default="rendered")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tests", type=int, default=256, help="held-out prompts")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="whose prompts are held out")
    own, _, rest = (list(g) for g in _cut(sys.argv[1:]))
    given = parser.parse_args(own)
    place = given.out / given.pictures
    images = pictures(place / "images", given.pictures, "train", given.prompts)
    held = pictures(place / given.split, given.pictures, given.split, given.tests)
    pairs = votes(images, place / "votes")
    words = [str(pairs), "--tower", "shapes/clip", "--out", str(place / "scorer"), "--name", "raters", *rest]
    start = time.process_time()
    print(parsing.call(train_scorer, words, "scorer_world")())
    seconds = time.process_time() - start
    names = [f"trained={place / 'scorer'},{rater}" for rater in RATERS]
    scores = place / f"scores-{given.split}"
    print(scoring.score(held, scorer=("shapes_clip", *names), out=scores))
    print(f"{'rater':<9}{'scorer':<16}{'choices right':<34}right where utilities differ at all")
    for number, rater in enumerate(RATERS):
        for scorer in ("shapes_clip", f"raters:{rater}"):
            found = shares(scores, held, scorer, number)
            said = [f"{a:.1%} [{b:.1%}, {c:.1%}] of {n}" for a, b, c, n in found]
            print(f"{rater:<9}{scorer:<16}{said[0]:<34}{said[1]}")
    print(f"trained in {seconds:.0f} s of the processor" if seconds > 5 else "the scorer was there")


def _cut(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at : at + 1], words[at + 1 :]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"scorer_world: {error}")
