"""Preferences -> the same with a caption of its own for each image (DCPO), by anybody's captioner and perturber."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import PIL.Image

from diffalign import decoding, folders, outsiders
from diffalign.progress import track
from diffalign.records import Caption, InputError, Judgement


def caption(
    data: Path,
    /,
    *,
    out: Path,
    mode: Literal["caption", "perturb", "hybrid"],
    captioner: str = "",
    perturber: str = "",
    batch: int = 16,
) -> str:
    """Give each image of a preference a caption of its own; the same command again goes on where it was interrupted.

    caption: both images as the captioner describes them. perturb: the chosen image keeps its prompt, the rejected one
    has it perturbed. hybrid: both described, then the rejected one's caption perturbed. `train … --captions own` reads
    them. A captioner may give None for a picture, which then keeps its prompt. Source: DCPO, arXiv 2502.06023.

    Args:
        data: Record folder of judgements (of pair, import or filter).
        out: Record folder to write.
        mode: caption, perturb or hybrid.
        captioner: file.py:function, (pictures, prompts) -> as many texts.
        perturber: file.py:function, (texts) -> as many texts.
        batch: Images per call.
    """
    if batch < 1:
        raise InputError(f"batch = {batch}: expected at least 1")
    describe = _loaded(captioner, "captioner", mode in ("caption", "hybrid"))
    perturb = _loaded(perturber, "perturber", mode in ("perturb", "hybrid"))
    folders.open_folder(data, *folders.JUDGED)
    rows = folders.records(data, "judgements")
    losers = _losers(data, rows) if perturb else set()
    images, texts = folders.image_rows(data), folders.texts(data)
    wanted = sorted({name for row in rows for name in row.images} if describe else losers)
    unknown = next((name for name in wanted if name not in images), None)
    if unknown or not wanted:
        raise InputError(f"{data}: {f'image {unknown} is in no parent folder' if unknown else 'no image to caption'}")
    cuts = [wanted[i : i + batch] for i in range(0, len(wanted), batch)]
    revisions = [f and f[1] for f in (describe, perturb)]
    manifest = folders.Manifest(
        "caption", {"mode": mode, "revisions": revisions, "batch": batch}, len(cuts), (folders.parent(out, data),)
    )
    folders.begin(out, manifest)
    folders.write_part(out, "judgements", 0, rows)
    todo = [n for n, cut in enumerate(cuts) if not folders.is_whole(out, "captions", n, {"image_id": cut})]
    for n in track(todo, "caption", len(todo)):
        prompts = [texts[images[name]["prompt_id"]] for name in cuts[n]]
        said: list[str | None] = list(prompts)
        if describe:
            stored = dict(folders.image_bytes(data, cuts[n]))
            pictures = [_decoded(data, name, stored[name]) for name in cuts[n]]
            said = _checked(describe[0](pictures, prompts), len(prompts), captioner)
        if perturb:
            said = _perturbed(said, [name in losers for name in cuts[n]], perturb[0], perturber)
        written = [Caption(name, text, mode) for name, text in zip(cuts[n], said, strict=True)]
        folders.write_part(out, "captions", n, written)
    missing = sum(row["text"] is None for row in folders.read(out, "captions", ["text"]).to_pylist())
    if missing == len(wanted):
        raise InputError(f"{out}: no image has a caption; {captioner} gave None for all {missing}")
    note = f", {missing} left without one" if missing else ""
    return (
        f"{out}: {len(wanted) - missing} captions ({mode}){note}; "
        f"next: diffalign train RECIPE --captions own --data {out} --out …"
    )


def _loaded(text: str, kind: str, wanted: bool) -> tuple[Callable[..., Any], str] | None:
    if wanted != bool(text):
        raise InputError(f"{kind} = {text or 'none'}: mode caption needs a captioner, perturb a perturber, hybrid both")
    return outsiders.load(text, kind) if text else None


def _losers(data: Path, rows: Sequence[Judgement]) -> set[str]:
    """The rejected images; raises InputError for lists, and where an image is chosen in one pair, not in another."""
    odd = next((row for row in rows if row.kind != "pair"), None)
    if odd:
        raise InputError(f"{data}: judgement {odd.id} is of kind {odd.kind}; perturbed captions are for pairs")
    decided = [row for row in rows if row.p not in (None, 0.5)]
    winners, losers = {r.images[r.p < 0.5] for r in decided}, {r.images[r.p > 0.5] for r in decided}
    if both := sorted(winners & losers):
        raise InputError(
            f"{data}: image {both[0]} is chosen in one pair and rejected in another; a perturbed caption needs one "
            "role an image, as best_vs_worst gives it"
        )
    return losers


def _perturbed(
    said: Sequence[str | None], lost: Sequence[bool], function: Callable[..., Any], name: str
) -> list[str | None]:
    """The texts, those of rejected images perturbed."""
    turned = [i for i, text in enumerate(said) if lost[i] and text is not None]
    found = list(said)
    if turned:
        for i, text in zip(turned, _checked(function([said[i] for i in turned]), len(turned), name), strict=True):
            found[i] = text
    return found


def _decoded(data: Path, name: str, stored: bytes) -> PIL.Image.Image:
    try:
        return decoding.rgb(stored)
    except decoding.ERRORS as error:
        raise InputError(f"{data}: image {name} cannot be decoded ({error})") from None


def _checked(given: object, count: int, name: str) -> list[str | None]:
    """What a function gave for `count` items; raises InputError where it is not as many texts, or one is empty."""
    found = list(given) if isinstance(given, list | tuple) else None
    if found is None or len(found) != count or not all(t is None or (isinstance(t, str) and t.strip()) for t in found):
        raise InputError(f"{name}: gave {str(given)[:60]!r}, expected a list of {count} texts, none of them empty")
    return found
