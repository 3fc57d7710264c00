"""Pick-a-Pic v1 and v2, Pick-Style, Pick-Safety, and Pick-Double-Caption; also as webdataset tars.

Columns: caption, jpg_0, jpg_1 (the bytes of the files), label_0, label_1 (1: better, 0: worse, 0.5: a tie), has_label,
model_0, model_1, user_id. Pick-Double-Caption has caption_0 and caption_1, each image's own.
Source: Kirstain et al. 2023, Pick-a-Pic; Saeidi et al. 2025, DCPO.
"""

from dataclasses import replace

from diffalign.readers.base import UNLABELLED, Entry, Reader, Row, Slot, complementary, each, present

_PROMPT = "caption|original_prompt|prompt|txt"


def _labelled(row: Row) -> bool:
    """Rows that say so have no label, whatever their label columns hold."""
    value = row.get("has_label")
    if value is None:
        return True
    if value not in (True, False, "True", "False", "true", "false", "0", "1"):
        raise row.error("has_label", "wrong type", f"is {str(value)[:20]!r}, expected true or false")
    return value in (True, "True", "true", "1")


def _entry(row: Row) -> Entry:
    slots = tuple(
        Slot(row.number, f"jpg_{i}", model=row.optional(f"model_{i}"), caption=row.optional(f"caption_{i}"))
        for i in (0, 1)
    )
    verdict = complementary(row, "label_0", "label_1") if _labelled(row) else UNLABELLED
    prompt = row.text(present(row, _PROMPT))
    return Entry(row.where, prompt, slots, (replace(verdict, rater=row.optional("user_id")),))


READERS = (
    Reader(
        name="pickapic",
        needs=(_PROMPT, "jpg_0", "jpg_1", "label_0"),
        labels=("label_1", "has_label", "model_0", "model_1", "user_id", "caption_0", "caption_1"),
        pictures=("jpg_0", "jpg_1"),
        entries=each(_entry),
        licence="none on its card, so not to be passed on without asking its authors",
        free=False,
    ),
)
