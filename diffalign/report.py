"""A run -> one HTML page that stands alone, and a picture of the same prompts before and after."""

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from diffalign import alarms, curves, entries, findings, folders, manifest, pictures
from diffalign.findings import Evaluation, Verdict
from diffalign.records import InputError

SAMPLE, EXTREMES = 12, 4
EYEBROW = '<p class="eyebrow">diffalign report</p>'
FAIR = (
    "Left: base. Right: policy. Same prompt, same noise. The prompts were chosen by a hash of their id, not by result."
)


def report(run: Path, /, *, out: Path) -> str:
    """Write one self-contained HTML page on a run and on what `compare` found in RUN/compare, and a PNG of pictures.

    The same run gives the same bytes. Raises InputError where the folder is no run, where a file in it is damaged, or
    where a page or picture that no report wrote would be replaced.

    Args:
        run: Run folder (what `train` or `demo` writes).
        out: HTML file to write; the picture gets the same name with .png.
    """
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"{out}: expected a name that ends in .html")
    settings = entries.settings(run)
    metrics, evaluations = run / "metrics.jsonl", run / "evaluations.jsonl"
    rows, cut = curves.read(metrics) if metrics.is_file() else ([], None)
    seen = curves.read(evaluations)[0] if evaluations.is_file() else []
    found = findings.evaluation(run, settings["run"])
    page = {
        "run": str(run),
        "window": curves.SMOOTH,
        "title": _title(settings["run"]),
        "facts": _facts(settings["run"]),
        "progress": _progress(settings["run"], rows, cut),
        "alarms": alarms.alarms(rows, seen),
        "commands": _commands(run, settings, found, out),
        "settings": list(flatten(settings["run"])),
        "versions": settings.get("versions", {}),
        "charts": [d for d in (curves.draw(rows, chart) for chart in curves.CHARTS) if d],
        "frame": {n: getattr(curves, n.upper()) for n in ("width", "height", "left", "right", "bottom")},
        **_judged(found),
        **_show(found),
    }
    text, written = _render(page), str(out)
    picture = out.with_suffix(".png")
    _require_own(out, picture if page["sample"] else None)
    manifest.clear(out, picture)
    if page["sample"]:
        folders.write_atomically(picture, pictures.grid(page["sample"], page["images"], ("base", "policy"), FAIR))
        written = f"{out} and {picture}"
    folders.write_atomically(out, text.encode())
    said = headline(found.head, found.prompts)[0] if found else "nothing compared yet"
    return f"{written}: {said}; next: open {out} in a browser"


def _require_own(out: Path, picture: Path | None) -> None:
    """Raise InputError where what would be written replaces anything that is not of an earlier report."""
    if out.parent.exists() and not out.parent.is_dir():
        raise InputError(f"{out.parent}: is a file, expected a folder")
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected a file or a new name")
    if out.exists() and EYEBROW.encode() not in out.read_bytes():
        raise InputError(f"{out}: is no page of a report; choose another --out")
    if picture and picture.exists() and not pictures.is_grid(picture, FAIR):
        raise InputError(f"{picture}: is no picture of a report, which has its page's name; choose another --out")


def headline(verdict: Verdict, prompts: int) -> tuple[str, str]:
    """The result in one sentence, and how sure it is in another."""
    n = verdict.numbers
    rate = percent(n["win_rate"], 0)
    if n["win_rate_low"] > 0.5:
        said = f"The policy beats its base in {rate} of comparisons"
    elif n["win_rate_high"] < 0.5:
        said = f"The policy is worse than its base: it wins only {rate} of comparisons"
    else:
        said = f"No difference shown: the policy wins {rate} of comparisons"
    interval = f"{percent(n['win_rate_low'])} to {percent(n['win_rate_high'])}"
    role = {
        True: "which also judged the training pairs, so this shows what was optimised, not that pictures are better",
        False: "which did not judge the training pairs",
        None: "which may or may not have judged the training pairs",
    }[verdict.trained]
    sure = f"On {prompts} prompts with equal noise, ties counted half; 95% interval {interval}, resampled by prompt."
    return said, f"{sure} The judge is the {verdict.label}, {role}."


def percent(value: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * value:.{digits}f}%"


def _judged(found: Evaluation | None) -> dict[str, Any]:
    if found is None:
        return {"headline": None, "sure": None, "verdicts": (), "half": 0.1, "also": ()}
    said, sure = headline(found.head, found.prompts)
    ends = [abs(v.numbers[k] - 0.5) for v in found.verdicts for k in ("win_rate_low", "win_rate_high")]
    half = min(0.5, max(0.1, math.ceil(max(ends) * 10 - 1e-9) / 10))
    also = [v for v in found.verdicts if v.share]
    return {"headline": said, "sure": sure, "verdicts": found.verdicts, "half": half, "also": also}


def _show(found: Evaluation | None) -> dict[str, Any]:
    """The cells to show, and their pictures; none where nothing was compared or the pictures are gone."""
    nothing = {
        "sample": [],
        "wins": [],
        "losses": [],
        "images": {},
        "note": found.note if found else None,
        "head": None,
    }
    if found is None or not found.cells:
        return nothing
    sample = pictures.fair(found.cells, SAMPLE)
    wins, losses = pictures.extremes(found.cells, found.head.name, EXTREMES)
    try:
        images = pictures.load(*found.folders, [*sample, *wins, *losses])
    except InputError as error:
        return nothing | {"note": str(error)}
    return {"sample": sample, "wins": wins, "losses": losses, "images": images, "note": None, "head": found.head}


def _title(run: dict[str, Any]) -> str:
    return f"{_class(run['objective'])} on {'/'.join(Path(run['model']).parts[-2:])}"


def _class(value: dict[str, Any]) -> str:
    return str(value.get("class", "?")).rpartition(":")[2]


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """The few settings that stand in the head of the page."""
    flat = dict(flatten(run))
    wanted = {
        "objective.beta": "β", "policy": "policy", "policy.rank": "rank", "steps": "steps",
        "batch": "groups a step", "optimizer.lr": "learning rate", "seed": "seed", "precision": "precision",
    }  # fmt: skip
    return [(label, flat[name]) for name, label in wanted.items() if name in flat]


def flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as text) of a resolved run; an object stands as its class, followed by its fields."""
    for name, item in value.items():
        if name == "class":
            continue
        if isinstance(item, dict):
            yield prefix + name, _class(item)
            yield from flatten(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item if isinstance(item, str) else _plain(item)


def _plain(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _progress(run: dict[str, Any], rows: Sequence[dict[str, Any]], cut: str | None) -> list[str]:
    """What a reader must know before reading the curves: that a run is not finished, or that a line is missing."""
    if not rows:
        return ["There is no metrics.jsonl yet, so there are no curves; train the run to get them."]
    last = int(rows[-1]["step"])
    unfinished = f"Training stands at step {last} of {run['steps']}; the same command goes on."
    return ([unfinished] if last < run["steps"] else []) + ([cut] if cut else [])


def _commands(run: Path, settings: dict[str, Any], found: Evaluation | None, out: Path) -> list[str]:
    """The commands behind the page: those in RUN/commands.sh where there is one, else what is known of them."""
    script = run / "commands.sh"
    if script.is_file():
        lines = script.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("diffalign ")]
    known = [settings["command"]] if isinstance(settings.get("command"), str) else []
    if found:
        before, after = (shlex.quote(str(f)) for f in found.folders)
        known.append(f"diffalign compare {before} {after} --out {shlex.quote(str(run / 'compare'))}")
    return [*known, f"diffalign report {shlex.quote(str(run))} --out {shlex.quote(str(out))}"]


def signed(value: float, share: bool) -> str:
    """A difference with its sign: in points where it is one of shares."""
    fine = not share and 0 < abs(value) < 0.01
    text = f"{abs(value):.2g}" if fine else f"{100 * abs(value):.1f}" if share else f"{abs(value):.3f}"
    return ("+" if value > 0 else "−" if value < 0 else "±") + text


def level(value: float, share: bool) -> str:
    """A mean score: in percent where it is a share."""
    return percent(value) if share else f"{value:.3f}"


def _render(page: dict[str, Any]) -> str:
    """The page as text; everything that comes from a user is escaped by the template engine."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    engine = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters |= {
        "percent": percent,
        "signed": signed,
        "level": level,
        "data_uri": pictures.data_uri,
        "small": pictures.is_small,
    }
    return engine.get_template("report.html.jinja").render(page)
