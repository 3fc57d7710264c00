"""open-image-preferences: the raw answers of several people, and the binarised pairs.

Raw: images {image_1, image_2, prompt}, model_1, model_2, preference.responses (image_1, image_2, both_good, both_bad,
toxic_content) and preference.responses.users; also flat, as prompt, image_1, image_2, response. Images of the raw set
are addresses; what follows "resolve/main/" in them is looked for among the files at hand.
Binarised: prompt, chosen, rejected, chosen_model, rejected_model, evolution, category; where nobody won, `chosen` is
empty and the model columns are filled all the same: such a row has no image, so it is left out, its models with it.
Source: the notebook that binarised the answers.
"""

from diffalign.readers.base import Entry, Reader, Row, Slot, Verdict, each, pair

_LICENCE = "Apache-2.0; images by FLUX.1-dev and Stable Diffusion 3.5 carry those models' terms too"
_ANSWERS = {
    "image_1": Verdict("pair", "decided", p=1.0),
    "image_2": Verdict("pair", "decided", p=0.0),
    "both_good": Verdict("pair", "both_good", p=0.5),
    "both_bad": Verdict("pair", "both_bad", p=0.5),
}


def _verdicts(row: Row, field: str, answers: list[object], users: list[object]) -> tuple[Verdict, ...]:
    """One verdict an answer; a row that anybody called toxic is refused."""
    odd = [a for a in answers if not isinstance(a, str) or a not in _ANSWERS]
    if "toxic_content" in odd:
        raise row.error(field, "toxic", "an annotator marked it as toxic content")
    if odd:
        raise row.error(field, "unknown answer", f"is {str(odd[0])[:40]!r}, expected one of {', '.join(_ANSWERS)}")
    if users and len(users) != len(answers):
        raise row.error(field, "lengths differ", f"{len(answers)} answers by {len(users)} users")
    raters = [str(u) for u in users] or [None] * len(answers)
    found = []
    for answer, rater in zip(answers, raters, strict=True):
        verdict = _ANSWERS[str(answer)]
        found.append(Verdict("pair", verdict.status, p=verdict.p, rater=rater))
    return tuple(found) or (Verdict("pair", "unlabelled"),)


def _raw(row: Row) -> Entry:
    images = row.get("images")
    if not isinstance(images, dict) or not isinstance(images.get("prompt"), str) or not images["prompt"].strip():
        raise row.error("images", "no prompt", "expected a struct of image_1, image_2 and prompt")
    answers = row.items("preference.responses") if row.get("preference.responses") is not None else []
    users = row.items("preference.responses.users") if row.get("preference.responses.users") is not None else []
    slots = tuple(Slot(row.number, "images", (f"image_{i}",), model=row.optional(f"model_{i}")) for i in (1, 2))
    return Entry(row.where, images["prompt"], slots, _verdicts(row, "preference.responses", answers, users))


def _flat(row: Row) -> Entry:
    answers = [] if row.get("response") is None else [row.get("response")]
    slots = tuple(Slot(row.number, f"image_{i}", model=row.optional(f"model_{i}")) for i in (1, 2))
    return Entry(row.where, row.text("prompt"), slots, _verdicts(row, "response", answers, []))


def _binarised(row: Row) -> Entry:
    slots = tuple(Slot(row.number, name, model=row.optional(f"{name}_model")) for name in ("chosen", "rejected"))
    return Entry(row.where, row.text("prompt"), slots, (pair(1.0),))


_RAW = ("images", "model_1", "model_2", "preference.responses")
READERS = (
    Reader(
        "open_image_preferences",
        _RAW,
        ("images", "preference.responses.users"),
        ("images",),
        each(_raw),
        _LICENCE,
    ),
    Reader(
        "open_image_preferences_binarised",
        ("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "evolution"),
        (),
        ("chosen", "rejected"),
        each(_binarised),
        _LICENCE,
    ),
    Reader(
        "open_image_preferences_flat",
        ("prompt", "image_1", "image_2", "response"),
        ("model_1", "model_2"),
        ("image_1", "image_2"),
        each(_flat),
        _LICENCE,
    ),
)
