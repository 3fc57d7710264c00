"""Tables of one's own, by plain column names: CSV, JSON lines, JSON, Parquet, tars and folders of pictures.

prompt, chosen, rejected (as TRL has them); prompt, image_0, image_1 with `preferred` (image_0, image_1 or tie) or with
`p_first` (the probability that image_0 is better); prompt, images (a list) with `ranks` (1 is best) or `scores`
(higher is better); prompt, image, desirable (1: liked, 0: disliked, or between).
"""

from diffalign.readers.base import UNLABELLED, UNRANKED, Entry, Reader, Row, Slot, Verdict, each, finite, pair, ranking

_WORDS = {
    1.0: ("image_0", "0", "first", "left", "a"), 0.0: ("image_1", "1", "second", "right", "b"),
    0.5: ("tie", "0.5", "equal", "draw"),
}  # fmt: skip
_PREFERRED = {word: p for p, words in _WORDS.items() for word in words}
_KNOWN = ("rater", "dimension", "weight")


def _with(row: Row, verdict: Verdict) -> tuple[Verdict, ...]:
    """The verdict with what further columns say."""
    weight = row.number_or_none("weight")
    if weight is not None and weight < 0:
        raise row.error("weight", "label out of range", f"is {weight}, expected at least 0")
    dimension = row.optional("dimension") or "overall"
    known = (verdict.kind, verdict.status, verdict.p, verdict.scores, dimension, row.optional("rater"))
    return (Verdict(*known, 1.0 if weight is None else weight),)


def _slots(row: Row, *names: str) -> tuple[Slot, ...]:
    """One slot a column `name`, with `name_model` and `name_caption` where they are."""
    return tuple(Slot(row.number, n, (), row.optional(f"{n}_model"), row.optional(f"{n}_caption")) for n in names)


def _binary(row: Row) -> Entry:
    return Entry(row.where, row.text("prompt"), _slots(row, "chosen", "rejected"), _with(row, pair(1.0)))


def _preferred(row: Row) -> Entry:
    value = row.get("preferred")
    name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip().lower()
    if value is not None and name not in _PREFERRED:
        raise row.error("preferred", "unknown answer", f"is {name[:40]!r}, expected image_0, image_1 or tie")
    verdict = UNLABELLED if value is None else pair(_PREFERRED[name])
    return Entry(row.where, row.text("prompt"), _slots(row, "image_0", "image_1"), _with(row, verdict))


def _p_first(row: Row) -> Entry:
    p = row.number_or_none("p_first")
    if p is not None and not 0 <= p <= 1:
        raise row.error("p_first", "label out of range", f"is {p}, expected a number from 0 to 1")
    verdict = UNLABELLED if p is None else pair(p)
    return Entry(row.where, row.text("prompt"), _slots(row, "image_0", "image_1"), _with(row, verdict))


def _list(row: Row) -> Entry:
    field, sign = ("scores", 1) if "scores" in row.values else ("ranks", -1)
    if row.get(field) is None:
        return Entry(row.where, row.text("prompt"), (), _with(row, UNRANKED))
    scores = [sign * finite(row, field, v) for v in row.items(field)]
    slots = tuple(Slot(row.number, "images", (i,)) for i in range(len(scores)))
    return Entry(row.where, row.text("prompt"), slots, _with(row, ranking(row, field, scores)))


def _unpaired(row: Row) -> Entry:
    p = row.number_or_none("desirable")
    if p is not None and not 0 <= p <= 1:
        raise row.error("desirable", "label out of range", f"is {p}, expected a number from 0 to 1")
    verdict = Verdict("unpaired", "unlabelled" if p is None else "decided", p=p)
    return Entry(row.where, row.text("prompt"), _slots(row, "image"), _with(row, verdict))


def _labels(*names: str) -> tuple[str, ...]:
    return (*(f"{n}_{what}" for n in names for what in ("model", "caption")), *_KNOWN)


_PAIR = ("image_0", "image_1")
READERS = (
    Reader(
        "chosen_rejected",
        ("prompt", "chosen", "rejected"),
        _labels("chosen", "rejected"),
        ("chosen", "rejected"),
        each(_binary),
    ),
    Reader("preferred", ("prompt", *_PAIR, "preferred"), _labels(*_PAIR), _PAIR, each(_preferred)),
    Reader("p_first", ("prompt", *_PAIR, "p_first"), _labels(*_PAIR), _PAIR, each(_p_first)),
    Reader("ranked", ("prompt", "images", "ranks|scores"), _KNOWN, ("images",), each(_list)),
    Reader("unpaired", ("prompt", "image", "desirable"), _labels("image"), ("image",), each(_unpaired)),
)
