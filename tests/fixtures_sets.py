"""Small copies of public preference sets in their real layout, made by code, with the rows that break loaders.

Each holds, where its schema can: a decided pair, a tie, an unlabelled row, a truncated JPEG, CMYK and RGBA pictures,
sides of unequal size, a picture shown in two rows, and curly quotes in a prompt.
"""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

CURLY = "a “quoted” fox, it’s red"


def picture(seed: int, size: tuple[int, int] = (24, 24), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """The file of a picture of smooth random colours, (width, height) = size."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC).convert(mode)
    sink = io.BytesIO()
    image.save(sink, format=kind)
    return sink.getvalue()


def noise(seed: int, side: int = 200) -> bytes:
    """The file of a picture that does not compress, side * side * 3 bytes."""
    sink = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


A, B, C, D = (picture(n) for n in range(4))
WIDE = picture(5, (48, 24), kind="JPEG")
CMYK = picture(6, mode="CMYK", kind="JPEG")
RGBA = picture(7, mode="RGBA")
CUT = picture(8, (64, 64), kind="JPEG")[:-500]


@dataclass(frozen=True)
class Case:
    """One row: prompt, two pictures, and P(first is better), None where unlabelled."""

    prompt: str
    first: bytes
    second: bytes
    p: float | None


CASES = (
    Case("a red circle", A, B, 1.0),
    Case(CURLY, C, WIDE, 0.0),
    Case("a red circle", B, D, 0.5),
    Case("a blue square", A, C, None),
    Case("a green square", CUT, A, 1.0),
    Case("ink", CMYK, RGBA, 0.0),
    Case("a red circle", A, D, 1.0),
)


LISTS: tuple[tuple[str, tuple[bytes, ...], tuple[int, ...] | None], ...] = (
    (CURLY, (A, WIDE, RGBA), (1, 3, 3)),
    ("ink", (CMYK, CUT, B), (2, 1, 4)),
    ("equal", (A, D), (1, 1)),
    ("nobody said", (C, B), None),
)
RANKED = [(CURLY, A, WIDE), (CURLY, A, RGBA), ("ink", CMYK, B)]


@dataclass(frozen=True)
class Made:
    """What a set holds once imported, lists as all pairs: (prompt, better picture, worse picture); what is left out.

    A set whose places or names say which picture is better has no way to say that nobody did (`forced`).
    """

    source: Path
    reader: str
    pairs: list[tuple[str, bytes, bytes]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    forced: bool = False


def decided(cases: Sequence[Case]) -> list[tuple[str, bytes, bytes]]:
    """The pairs that a reader must keep, better picture first."""
    good = [c for c in cases if c.p not in (None, 0.5) and CUT not in (c.first, c.second)]
    return [(c.prompt, c.first, c.second) if c.p > 0.5 else (c.prompt, c.second, c.first) for c in good]


def parquet(path: Path, rows: Sequence[Mapping[str, Any]], group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.Table.from_pylist([{n: r.get(n) for n in names} for r in rows]), path, row_group_size=group)
    return path


def files(folder: Path, cases: Sequence[Case] = CASES) -> list[tuple[str, str]]:
    """The pictures of the cases as files; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for n, case in enumerate(cases):
        for side, data in (("a", case.first), ("b", case.second)):
            (folder / f"{n}{side}.{ending(data)}").write_bytes(data)
        names.append((f"{n}a.{ending(case.first)}", f"{n}b.{ending(case.second)}"))
    return names


def ending(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg"


def pickapic_rows() -> list[dict[str, Any]]:
    return [
        {
            "are_different": True, "best_image_uid": f"u{n}", "caption": c.prompt, "created_at": "2023-01-01",
            "has_label": c.p is not None, "image_0_uid": f"u{n}", "image_1_uid": f"v{n}", "jpg_0": c.first,
            "jpg_1": c.second, "label_0": 0.0 if c.p is None else c.p, "label_1": 0.0 if c.p is None else 1 - c.p,
            "model_0": "sdxl", "model_1": "dreamlike" if n % 2 else "sdxl", "ranking_id": n, "user_id": n % 3,
            "num_example_per_prompt": 1, "__index_level_0__": n,
        }
        for n, c in enumerate(CASES)
    ]  # fmt: skip


_PAIRWISE = {"tie": 1, "unlabelled": 1, "unreadable image": 1}
_LISTWISE = {"tie": 1, "unlabelled": 1}


def pickapic(place: Path) -> Made:
    path = parquet(place / "train-00000-of-00001.parquet", pickapic_rows())
    return Made(path, "pickapic", decided(CASES), _PAIRWISE)


def saved_dataset(place: Path) -> Made:
    """What `Dataset.save_to_disk` leaves, with its two JSON files beside the rows."""
    datasets.Dataset.from_list(pickapic_rows()).save_to_disk(place)
    return Made(place, "pickapic", decided(CASES), _PAIRWISE)


def double_caption(place: Path) -> Made:
    rows = [r | {"caption_0": f"first {n}", "caption_1": f"second {n}"} for n, r in enumerate(pickapic_rows())]
    return Made(parquet(place / "train.parquet", rows), "pickapic", decided(CASES), _PAIRWISE)


def webdataset(place: Path) -> Made:
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place / "00000.tar", "w") as tar:
        for n, c in enumerate(CASES):
            cells = {"jpg_0.jpg": c.first, "jpg_1.jpg": c.second, "original_prompt.txt": c.prompt.encode()}
            if c.p is not None:
                cells |= {"label_0.txt": f"{c.p}".encode(), "label_1.txt": f"{1 - c.p}".encode()}
            for name, data in cells.items():
                member = tarfile.TarInfo(f"{n:06d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return Made(place / "00000.tar", "pickapic", decided(CASES), _PAIRWISE)


def hpdv2(place: Path) -> Made:
    names = files(place / "train")
    rows = [
        {"human_preference": _both(c.p), "prompt": c.prompt, "file_path": list(n), "user_hash": "h"}
        for c, n in zip(CASES, names, strict=True)
    ]
    (place / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    return Made(place / "train.json", "hpdv2", decided(CASES), _PAIRWISE)


def _both(p: float | None) -> list[float] | None:
    return None if p is None else [p, 1 - p]


def hpdv2_test(place: Path) -> Made:
    """Lists with rank 1 the best; imported as they are they give no pair."""
    rows = []
    for n, (prompt, shown, ranks) in enumerate(LISTS):
        names = [f"{n}-{i}.{ending(data)}" for i, data in enumerate(shown)]
        place.mkdir(parents=True, exist_ok=True)
        for name, data in zip(names, shown, strict=True):
            (place / name).write_bytes(data)
        votes = [{"rank": ranks, "user_hash": "h"}]
        rows.append({"prompt": prompt, "image_path": names, "rank": ranks, "raw_annotations": votes})
    (place / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    return Made(place / "test.json", "hpdv2_test", RANKED, _LISTWISE)


def hpdv3(place: Path) -> Made:
    cases = [c for c in CASES if c.p in (0.0, 1.0)]
    names = files(place / "images", cases)
    rows = []
    for n, (c, both) in enumerate(zip(cases, names, strict=True)):
        better, worse = both if c.p else both[::-1]
        rows.append({"prompt": c.prompt, "path1": better, "path2": worse, "model1": f"m{n % 2}", "model2": "real"})
    (place / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    return Made(place / "train.json", "hpdv3", decided(cases), {"unreadable image": 1}, forced=True)


def pick_style(place: Path) -> Made:
    """Pick-a-Pic's columns without those of its sessions."""
    rows = [
        {
            "caption": c.prompt,
            "jpg_0": c.first,
            "jpg_1": c.second,
            "label_0": c.p,
            "label_1": (_both(c.p) or [None])[-1],
        }
        for c in CASES
    ]
    return Made(parquet(place / "train-00000-of-00001.parquet", rows), "pickapic", decided(CASES), _PAIRWISE)


def imagereward(place: Path) -> Made:
    rows = []
    for prompt, shown, ranks in LISTS:
        for n, data in enumerate(shown):
            rank = ranks[n] if ranks else None
            rows.append({
                "image": {"bytes": data, "path": f"{n}.webp"}, "prompt_id": prompt[:5], "prompt": prompt,
                "classification": "People", "image_amount_in_total": len(shown), "rank": rank,
                "overall_rating": 4, "image_text_alignment_rating": rank, "fidelity_rating": rank,
            })  # fmt: skip
    return Made(parquet(place / "validation.parquet", rows, group=2), "imagereward_db", RANKED, _LISTWISE)


def imagereward_json(place: Path) -> Made:
    """The released archives after unpacking: JSON that names pictures by a path in the repository, beside them."""
    folder = place / "train" / "train_1"
    folder.mkdir(parents=True)
    rows = []
    for number, (prompt, shown, ranks) in enumerate(LISTS):
        for n, data in enumerate(shown):
            (folder / f"{number}-{n}.webp").write_bytes(data)
            rank = ranks[n] if ranks else None
            rows.append({
                "image_path": f"images/train/train_1/{number}-{n}.webp", "prompt_id": f"{number}", "prompt": prompt,
                "rank": rank, "classification": "People", "image_amount_in_total": len(shown), "overall_rating": 3,
                "image_text_alignment_rating": rank, "fidelity_rating": rank,
            })  # fmt: skip
    (folder / "train_1.json").write_text(json.dumps(rows), encoding="utf-8")
    return Made(place, "imagereward_db", RANKED, _LISTWISE)


def imagereward_group(place: Path) -> Made:
    rows = [
        {
            "prompt_id": f"{number}", "prompt": prompt, "classification": "People", "rank": ranks,
            "image": [{"bytes": data, "path": f"{n}"} for n, data in enumerate(shown)], "overall_rating": ranks,
            "image_text_alignment_rating": ranks, "fidelity_rating": ranks,
        }
        for number, (prompt, shown, ranks) in enumerate(LISTS)
    ]  # fmt: skip
    return Made(parquet(place / "validation.parquet", rows), "imagereward_db_group", RANKED, _LISTWISE)


def imagereward_pair(place: Path) -> Made:
    cases = [c for c in CASES if c.p in (0.0, 1.0)]
    rows = [
        {
            "prompt_id": str(n), "prompt": c.prompt, "classification": "People",
            "img_better": {"bytes": c.first if c.p else c.second, "path": None},
            "img_worse": {"bytes": c.second if c.p else c.first, "path": None},
        }
        for n, c in enumerate(cases)
    ]  # fmt: skip
    path = parquet(place / "validation.parquet", rows)
    return Made(path, "imagereward_db_pair", decided(cases), {"unreadable image": 1}, forced=True)


def _answer(p: float | None) -> list[str] | None:
    return {None: None, 0.5: ["both_good"], 1.0: ["image_1"], 0.0: ["image_2"]}[p]


def image_preferences(place: Path) -> Made:
    names = files(place / "image_quality_dev")
    hub = "https://huggingface.co/datasets/x/open-image-preferences-v1/resolve/main/image_quality_dev/"
    rows = [
        {
            "id": f"{n}-quality", "status": "completed", "model_1": "dev", "model_2": "sd", "evolution": "quality",
            "images": {"image_1": hub + names[n][0], "image_2": hub + names[n][1], "prompt": c.prompt},
            "category": "Manga", "preference.responses": _answer(c.p),
            "preference.responses.users": [f"user{n}"] if c.p is not None else None,
        }
        for n, c in enumerate(CASES)
    ]  # fmt: skip
    parquet(place / "data" / "train.parquet", rows)
    dropped = {"both_good": 1, "unlabelled": 1, "unreadable image": 1}
    return Made(place, "open_image_preferences", decided(CASES), dropped)


def image_preferences_flat(place: Path) -> Made:
    rows = [
        {"prompt": c.prompt, "image_1": c.first, "image_2": c.second, "response": (_answer(c.p) or [None])[0]}
        for c in CASES
    ]
    path = parquet(place / "train.parquet", rows)
    dropped = {"both_good": 1, "unlabelled": 1, "unreadable image": 1}
    return Made(path, "open_image_preferences_flat", decided(CASES), dropped)


def image_preferences_binarised(place: Path) -> Made:
    cases = [c for c in CASES if c.p in (0.0, 1.0)]
    known = {"chosen_model": "dev", "rejected_model": "sd", "evolution": "quality", "category": "Manga"}
    rows = [
        {
            "id": n, "prompt": c.prompt, "chosen": {"bytes": c.first if c.p else c.second, "path": None},
            "rejected": {"bytes": c.second if c.p else c.first, "path": None}, **known,
        }
        for n, c in enumerate(cases)
    ]  # fmt: skip
    rows.append({"id": 99, "prompt": "nobody won", "chosen": None, "rejected": None, **known})
    path = parquet(place / "train.parquet", rows)
    dropped = {"missing image": 1, "unreadable image": 1}
    return Made(path, "open_image_preferences_binarised", decided(cases), dropped, forced=True)


def rapidata_votes(place: Path) -> Made:
    votes = {None: (0, 0), 0.5: (5, 5), 1.0: (9, 0), 0.0: (0, 4)}
    rows = [
        {
            "prompt": c.prompt, "image1": {"bytes": c.first, "path": None}, "image2": {"bytes": c.second, "path": None},
            "votes_image1": votes[c.p][0], "votes_image2": votes[c.p][1], "model1": "flux", "model2": "sd3",
            "detailed_results": json.dumps({"votes": [{"votedFor": "flux/1_0.jpg"}]}),
        }
        for c in CASES
    ]  # fmt: skip
    return Made(parquet(place / "train_0001.parquet", rows), "rapidata_votes", decided(CASES), _PAIRWISE)


def rapidata(place: Path) -> Made:
    shares = {None: (None, None), 0.5: (0.5, 0.5), 1.0: (0.75, 0.25), 0.0: (0.2, 0.6)}
    rows = [
        {
            "prompt": c.prompt, "image1": {"bytes": c.first, "path": None}, "image2": {"bytes": c.second, "path": None},
            "model1": "flux", "model2": "sd3", "weighted_results_image1_preference": shares[c.p][0],
            "weighted_results_image2_preference": shares[c.p][1], "weighted_results_image1_coherence": 0.1,
            "weighted_results_image2_coherence": 0.9, "weighted_results_image1_alignment": 0.5,
            "weighted_results_image2_alignment": 0.5, "detailed_results_preference": "[]",
        }
        for c in CASES
    ]  # fmt: skip
    dropped = {"not in dimension overall": 1, "tie": 1, "unreadable image": 1}
    return Made(parquet(place / "train.parquet", rows), "rapidata", decided(CASES), dropped)


def trl(place: Path) -> Made:
    cases = [c for c in CASES if c.p in (0.0, 1.0)]
    rows = [
        {"prompt": c.prompt, "chosen": c.first if c.p else c.second, "rejected": c.second if c.p else c.first}
        for c in cases
    ]
    path = parquet(place / "train.parquet", rows)
    return Made(path, "chosen_rejected", decided(cases), {"unreadable image": 1}, forced=True)


def table_csv(place: Path) -> Made:
    names, words = files(place), {None: "", 0.5: "tie", 1.0: "image_0", 0.0: "image_1"}
    lines = ["prompt,image_0,image_1,preferred"]
    lines += [f'"{c.prompt}",{n[0]},{n[1]},{words[c.p]}' for c, n in zip(CASES, names, strict=True)]
    (place / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Made(place / "pairs.csv", "preferred", decided(CASES), _PAIRWISE)


def table_jsonl(place: Path) -> Made:
    names = files(place)
    rows = [
        {"prompt": c.prompt, "image_0": n[0], "image_1": n[1], "p_first": c.p}
        for c, n in zip(CASES, names, strict=True)
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return Made(place / "pairs.jsonl", "p_first", decided(CASES), _PAIRWISE)


def ranked_parquet(place: Path) -> Made:
    rows = [
        {"prompt": prompt, "images": list(shown), "scores": [-0.5 * r for r in ranks] if ranks else None}
        for prompt, shown, ranks in LISTS
    ]
    return Made(parquet(place / "train.parquet", rows), "ranked", RANKED, _LISTWISE)


def chosen_folder(place: Path) -> Made:
    cases = [c for c in CASES if c.p in (0.0, 1.0)]
    for side in ("chosen", "rejected"):
        (place / side).mkdir(parents=True)
    for n, c in enumerate(cases):
        for side, data in (("chosen", c.first if c.p else c.second), ("rejected", c.second if c.p else c.first)):
            (place / side / f"{n}.{ending(data)}").write_bytes(data)
        (place / "chosen" / f"{n}.txt").write_text(c.prompt + "\n", encoding="utf-8")
    (place / "chosen" / "lonely.png").write_bytes(A)
    (place / "chosen" / "lonely.txt").write_text("nobody beside it", encoding="utf-8")
    return Made(place, "chosen_rejected", decided(cases), {"missing image": 1, "unreadable image": 1}, forced=True)


def suffix_folder(place: Path) -> Made:
    place.mkdir(parents=True)
    cases = [c for c in CASES if c.p in (0.0, 1.0)]
    for n, c in enumerate(cases):
        won, lost = (c.first, c.second) if c.p else (c.second, c.first)
        mark = "_-."[n % 3]
        (place / f"{n}{mark}w.{ending(won)}").write_bytes(won)
        (place / f"{n}{mark}l.{ending(lost)}").write_bytes(lost)
        (place / f"{n}.txt").write_text(c.prompt, encoding="utf-8")
    return Made(place, "chosen_rejected", decided(cases), {"unreadable image": 1}, forced=True)


def ranked_folder(place: Path) -> Made:
    place.mkdir(parents=True)
    best_first = {"fox": (CURLY, (A, B, WIDE)), "ink": ("ink", (CUT, CMYK, RGBA, A))}
    for name, (prompt, shown) in best_first.items():
        for n, data in enumerate(shown):
            (place / f"{name}_{n}.{ending(data)}").write_bytes(data)
        (place / f"{name}.txt").write_text(prompt, encoding="utf-8")
    pairs = [(CURLY, A, B), (CURLY, A, WIDE), (CURLY, B, WIDE), ("ink", CMYK, RGBA), ("ink", CMYK, A), ("ink", RGBA, A)]
    return Made(place, "ranked", pairs, forced=True)


SETS: tuple[Callable[[Path], Made], ...] = (
    pickapic, saved_dataset, double_caption, webdataset, pick_style, hpdv2, hpdv2_test, hpdv3, imagereward,
    imagereward_json, imagereward_group, imagereward_pair, image_preferences, image_preferences_flat,
    image_preferences_binarised, rapidata_votes, rapidata, trl, table_csv, table_jsonl, ranked_parquet, chosen_folder,
    suffix_folder, ranked_folder,
)  # fmt: skip
