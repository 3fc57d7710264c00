"""Images -> preferences by a model that is shown two of them, in both orders; nothing is scored in between."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from diffalign import decoding, folders, records
from diffalign.progress import track
from diffalign.records import InputError, Judgement, digest
from diffalign.scorers import questions
from diffalign.scorers.comparisons import Comparison, position_bias
from diffalign.scorers.judge import Judge, configured
from diffalign.streams import stream

# (prompt id, first image, second image)
_Two = tuple[str, str, str]


def judge(
    images: Path, /, *, question: str, url: str = "", model: str = "", out: Path, most: int = 6, seed: int = 0,
    batch: int = 16,
) -> str:  # fmt: skip
    """Ask a vision-language model which of two images of a prompt is better; run again, it goes on where it was.

    Each two images are shown in both orders and the answers averaged; `comparisons/` keeps what the order mattered. An
    answer that cannot be read leaves its pair unlabelled, which no training uses.

    Args:
        images: Record folder of images.
        question: two, two_text, four, unifiedreward_pair, llava_critic or designsense, or a FILE.toml of such a form.
        url: The OpenAI-compatible server, up to and with /v1; or local, for a model in this process.
        model: The model's name there, or its folder or hub id.
        out: Record folder to write.
        most: At most this many pairs of a prompt, chosen by chance where there are more.
        seed: Names that choice.
        batch: Pairs asked about before anything is written.
    """
    if batch < 1 or most < 1:
        raise InputError(f"batch = {batch}, most = {most}: expected at least 1 each")
    name, asked = configured(",".join([question, url, model]))
    if asked.form not in questions.TWO:
        raise InputError(
            f"judge: {question} asks about one image; `diffalign score` takes it, judge={question},URL,MODEL"
        )
    folders.open_folder(images, "sample", "import")
    texts, pairs = folders.texts(images), _pairs(images, most, seed)
    cuts = [pairs[i : i + batch] for i in range(0, len(pairs), batch)]
    arguments = {"question": name, "asked": digest(repr(asked.prompt), asked.form, asked.system), "model": asked.model,
                 "most": most, "seed": seed, "batch": batch}  # fmt: skip
    folders.begin(out, folders.Manifest("pair", arguments, len(cuts), (folders.parent(out, images),)))
    todo = [n for n, cut in enumerate(cuts) if not _whole(out, n, cut)]
    server = Judge(asked)
    for n in track(todo, "judge", len(todo)):
        found = _ask(server, images, cuts[n], texts)
        said = [{"lean": c.lean, "consistent": c.consistent, "p": c.p, "reason": c.reason} for c in found]
        path = _beside(out, n)
        path.parent.mkdir(exist_ok=True)
        folders.write_atomically(path, (json.dumps(said, indent=1) + "\n").encode())
        rows = [_record(two, c, f"judge:{name}", asked.model) for two, c in zip(cuts[n], found, strict=True)]
        folders.write_part(out, "judgements", n, rows)
    return f"{server.account()}; {_summary(out, len(cuts))}" if todo else _summary(out, len(cuts))


def _pairs(images: Path, most: int, seed: int) -> list[_Two]:
    """Pairs of images of one prompt, prompts in the order of their ids, the first image the earlier one."""
    groups: dict[str, list[str]] = {}
    for row in folders.read(images, "images", ["id", "prompt_id"]).to_pylist():
        groups.setdefault(row["prompt_id"], []).append(row["id"])
    found = []
    for prompt in sorted(groups):
        every = list(itertools.combinations(groups[prompt], 2))
        kept = sorted(stream("judging", seed, prompt).permutation(len(every))[:most].tolist())
        found += [(prompt, *every[i]) for i in kept]
    if not found:
        raise InputError(f"{images}: no prompt has two images to compare")
    return found


def _whole(out: Path, number: int, cut: Sequence[_Two]) -> bool:
    expected = {"images": [[a, b] for _, a, b in cut]}
    return _kept(out, number) is not None and folders.is_whole(out, "judgements", number, expected)


def _kept(out: Path, number: int) -> list[Comparison] | None:
    """The comparisons of a batch as they were written beside it; None where they are not there, or damaged."""
    try:
        said = json.loads(_beside(out, number).read_bytes())
        return [Comparison(e["p"], lean=e["lean"], consistent=e["consistent"], reason=e["reason"]) for e in said]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _beside(out: Path, number: int) -> Path:
    return out / "comparisons" / f"part-{number:05d}.json"


def _ask(server: Judge, images: Path, cut: Sequence[_Two], texts: dict[str, str]) -> list[Comparison]:
    """The comparisons of a batch; a pair with a picture that cannot be read is not asked about."""
    stored = dict(folders.image_bytes(images, {image for _, *both in cut for image in both}))
    pictures = {image: _decode(data) for image, data in stored.items()}
    good = [
        i for i, (_, a, b) in enumerate(cut) if not isinstance(pictures[a], str) and not isinstance(pictures[b], str)
    ]
    first, second = ([pictures[cut[i][side]] for i in good] for side in (1, 2))
    found = dict(zip(good, server.compare(first, second, [texts[cut[i][0]] for i in good]), strict=True))
    return [found.get(i, Comparison(None, reason="a picture cannot be read")) for i in range(len(cut))]


def _decode(data: bytes) -> PIL.Image.Image | str:
    try:
        return decoding.rgb(data)
    except decoding.ERRORS as error:
        return str(error)


def _record(two: _Two, found: Comparison, source: str, rater: str) -> Judgement:
    status = "unlabelled" if found.p is None else found.status
    return records.pair(*two, found.p, source=source, rater=rater, status=status)


def _summary(out: Path, parts: int) -> str:
    """What was decided, and how far the order of the images decided it."""
    found = [comparison for n in range(parts) for comparison in _kept(out, n) or []]
    bias = position_bias(found)
    counts = Counter(row["status"] for row in folders.read(out, "judgements", ["status"]).to_pylist())
    kinds = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()))
    missing = next((f" (first: {c.reason})" for c in found if c.p is None), "")
    return (
        f"{out}: {len(found)} pairs: {kinds}{missing}; both orders agree on {bias['consistent']:.1%}, "
        f"lean to the image shown first {bias['lean']:+.3f}; next: diffalign train RECIPE.py --data {out} --out …"
    )
