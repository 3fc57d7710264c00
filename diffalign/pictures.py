"""Two models' pictures side by side: cells joined by prompt and noise index, a fair sample, and a grid as PNG."""

import base64
import io
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin

from diffalign import decoding, folders
from diffalign.records import digest

LARGEST = 512
SIDE, GAP, MARGIN, COLUMNS, SCALE = 128, 6, 24, 4, 2


@dataclass(frozen=True)
class Shot:
    """One picture: its image id, and what each scorer says of it (scorers without a value are left out)."""

    id: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Cell:
    """One prompt and one noise, drawn by both models."""

    prompt: str
    text: str
    index: int
    before: Shot
    after: Shot

    def gain(self, scorer: str) -> float | None:
        """Score after minus score before; None where one of them is missing."""
        if scorer not in self.before.scores or scorer not in self.after.scores:
            return None
        return self.after.scores[scorer] - self.before.scores[scorer]


def cells(before: Path, after: Path) -> list[Cell]:
    """The cells that two score folders share, in the order of the second; raises InputError where a parent is gone."""
    old, new, texts = _shots(before), _shots(after), folders.texts(after)
    return [Cell(p, texts.get(p, p), i, old[p, i], shot) for (p, i), shot in new.items() if (p, i) in old]


def _shots(folder: Path) -> dict[tuple[str, int], Shot]:
    """(prompt id, noise index) -> picture; those without an index are counted per prompt in the order of the rows."""
    rows = folders.image_rows(folder)
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in folders.read(folder, "scores", ["image_id", "prompt_id", "scorer", "value"]).to_pylist():
        known = values.setdefault((row["image_id"], row["prompt_id"]), {})
        if row["value"] is not None:
            known[row["scorer"]] = row["value"]
    seen: Counter[str] = Counter()
    found = {}
    for (image, prompt), scores in values.items():
        index = rows[image]["index"] if image in rows else None
        found[prompt, seen[prompt] if index is None else index] = Shot(image, scores)
        seen[prompt] += 1
    return found


def fair(known: Sequence[Cell], count: int) -> list[Cell]:
    """The first noise of `count` prompts, chosen by the hash of the prompt id: no score has a say in it."""
    first: dict[str, Cell] = {}
    for cell in sorted(known, key=lambda c: c.index):
        first.setdefault(cell.prompt, cell)
    return sorted(first.values(), key=lambda c: digest("report", c.prompt))[:count]


def extremes(known: Sequence[Cell], scorer: str, count: int) -> tuple[list[Cell], list[Cell]]:
    """The cells with the largest gains and those with the largest losses by one scorer, largest first."""
    gains = [(c.gain(scorer) or 0.0, digest("report", c.prompt, c.index), c) for c in known]
    wins = sorted((g for g in gains if g[0] > 0), key=lambda g: (-g[0], g[1]))
    losses = sorted((g for g in gains if g[0] < 0), key=lambda g: (g[0], g[1]))
    return [c for *_, c in wins[:count]], [c for *_, c in losses[:count]]


def load(before: Path, after: Path, chosen: Sequence[Cell]) -> dict[str, bytes]:
    """Image id -> file bytes of the chosen cells; raises InputError naming an image that is nowhere."""
    found = dict(folders.image_bytes(before, {c.before.id for c in chosen}))
    return found | dict(folders.image_bytes(after, {c.after.id for c in chosen}))


def is_small(data: bytes) -> bool:
    """Whether a picture is so small that it should be enlarged without smoothing."""
    return max(PIL.Image.open(io.BytesIO(data)).size) <= SIDE


def data_uri(data: bytes) -> str:
    """A picture as it can stand in a page: PNG as it is, or WebP where it had to be made smaller."""
    picture = PIL.Image.open(io.BytesIO(data))
    kind = "png"
    if max(picture.size) > LARGEST or picture.format != "PNG":
        picture = picture.convert("RGB")
        picture.thumbnail((LARGEST, LARGEST), PIL.Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        picture.save(sink, format="WEBP", quality=88)
        data, kind = sink.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def grid(chosen: Sequence[Cell], images: Mapping[str, bytes], names: tuple[str, str], caption: str) -> bytes:
    """PNG of the cells, four a row: both pictures side by side, which is which above them, the prompt below.

    The caption stands below them all, and as the file's title.
    """
    side, gap, margin = SIDE * SCALE, GAP * SCALE, MARGIN * SCALE
    small, line = PIL.ImageFont.load_default(13 * SCALE), 17 * SCALE
    texts = [textwrap.wrap(c.text, 38, max_lines=4, placeholder=" …") for c in chosen]
    columns = min(COLUMNS, len(chosen))
    width = columns * (2 * side + gap) + (columns + 1) * margin
    heights = [
        side + 2 * line + len(max(texts[i : i + columns], key=len)) * line + margin
        for i in range(0, len(chosen), columns)
    ]
    foot = textwrap.wrap(caption, max(30, width // (SCALE * 7)))
    sheet = PIL.Image.new("RGB", (width, margin + sum(heights) + len(foot) * line + margin // 2), "#ffffff")
    pen = PIL.ImageDraw.Draw(sheet)
    for number, (cell, lines) in enumerate(zip(chosen, texts, strict=True)):
        x = margin + number % columns * (2 * side + gap + margin)
        y = margin + sum(heights[: number // columns])
        for shift, name, shot in ((0, names[0], cell.before), (side + gap, names[1], cell.after)):
            pen.text((x + shift, y), name, fill="#8a8f98", font=small)
            sheet.paste(_square(images[shot.id], side), (x + shift, y + line))
            pen.rectangle((x + shift, y + line, x + shift + side - 1, y + line + side - 1), outline="#d9dce1", width=1)
        for row, text in enumerate(lines):
            pen.text((x, y + side + line + (row + 0.5) * line), text, fill="#1c2024", font=small)
    for row, text in enumerate(foot):
        pen.text((margin, margin + sum(heights) + row * line), text, fill="#8a8f98", font=small)
    sink = io.BytesIO()
    title = PIL.PngImagePlugin.PngInfo()
    title.add_text("Title", caption)
    sheet.save(sink, format="PNG", optimize=True, pnginfo=title)
    return sink.getvalue()


def is_grid(path: Path, caption: str) -> bool:
    """Whether a file is a `grid` of this caption."""
    try:
        with PIL.Image.open(path) as picture:
            return picture.info.get("Title") == caption
    except decoding.ERRORS:
        return False


def _square(data: bytes, side: int) -> PIL.Image.Image:
    """The picture on a square of `side` pixels: small ones enlarged without smoothing, large ones reduced with it."""
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    factor = side / max(picture.size)
    size = (math.ceil(picture.width * factor), math.ceil(picture.height * factor))
    how = PIL.Image.Resampling.NEAREST if factor >= 2 else PIL.Image.Resampling.LANCZOS
    square = PIL.Image.new("RGB", (side, side), "#f2f3f5")
    square.paste(picture.resize(size, how), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square
