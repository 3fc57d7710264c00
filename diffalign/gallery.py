"""A page with a random sample of rows: one HTML file that stands alone."""

import base64
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import PIL.Image

from diffalign.observations import Seen, Side
from diffalign.readers.pictures import FORMATS

SIDE = 256
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1a1a1a }
pre { overflow-x: auto } h1, li { overflow-wrap: anywhere }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
.row { border-top: 1px solid #ddd; padding: 1rem 0 }
.sides { display: flex; gap: 1rem; flex-wrap: wrap }
figure { margin: 0 } img { max-width: 16rem; max-height: 16rem; display: block }
figcaption { color: #555; font-size: 13px }
.better { outline: 3px solid #2a7f3f } .error { color: #a11; width: 16rem } code { font-size: 13px }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #e6e6e6 } figcaption { color: #aaa } }
"""
_HEAD = (
    "rows", "decided", "ties", "unlabelled", "refused", "unreadable", "same_image", "contradictions", "unique_images",
    "unique_prompts", "repeated_rows", "near_same", "near_duplicates", "unequal_sizes", "leaked_prompts",
)  # fmt: skip


def page(report: dict[str, Any], shown: Sequence[Seen]) -> str:
    """The counts, the sample, and the whole report as JSON; the same data and seed give the same bytes."""
    counts = "".join(f"<tr><th>{n.replace('_', ' ')}</th><td>{report[n]}</td></tr>" for n in _HEAD)
    wrong = "".join(f"<li>{html.escape(w)}</li>" for w in report["unreadable_images"] + report["refused_rows"])
    rows = "".join(map(_row, shown))
    whole = html.escape(json.dumps(report, indent=1, ensure_ascii=False))
    title = html.escape(f"{report['data']} ({report['reader']})")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><table>{counts}</table>"
        f"{f'<h2>Cannot be used</h2><ul>{wrong}</ul>' if wrong else ''}"
        f"<h2>{len(shown)} rows drawn at random</h2>"
        f"<p>The better image of each has a green frame; a tie has none.</p>{rows}"
        f"<h2>All counts</h2><pre><code>{whole}</code></pre></body></html>\n"
    )


def _row(seen: Seen) -> str:
    best = max(seen.values, default=None) if len(set(seen.values)) > 1 else None
    values = seen.values or (None,) * len(seen.sides)
    pairs = zip(seen.sides, values, strict=True)
    sides = "".join(_figure(side, value, value is not None and value == best) for side, value in pairs)
    return (
        f'<div class="row"><p>{html.escape(seen.prompt)}<br><code>{html.escape(seen.where)} · {seen.status}</code></p>'
        f'<div class="sides">{sides}</div></div>'
    )


def _figure(side: Side, value: float | None, better: bool) -> str:
    if side.picture is None or side.data is None:
        return f'<p class="error">{html.escape(side.error or "no picture")}</p>'
    said = [f"{side.picture.width}×{side.picture.height}", side.picture.mode, *([side.model] if side.model else [])]
    if value is not None:
        said.append(f"{value:.3g}")
    name = ' class="better"' if better else ""
    caption = html.escape(" · ".join(said))
    return f'<figure><img{name} src="{_thumbnail(side.data)}" alt=""><figcaption>{caption}</figcaption></figure>'


def _thumbnail(data: bytes) -> str:
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    small.save(sink, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
