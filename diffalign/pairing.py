"""Scores, comparisons or pictures -> preferences, by a rule that is a plain function; what is left out is counted."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffalign import folders, gathering, grouping, rules
from diffalign.grouping import Group
from diffalign.records import InputError, Judgement, digest, group_id
from diffalign.records import pair as pair_record
from diffalign.streams import stream

# By whom images are judged that were compared and not scored.
WON = "win rate"
SEVERAL = ("agreement", "frontier")
LISTS = ("ranking", "advantages", "curated")
PLACES = ("score", *folders.JUDGED)
_BY_ONE = ("scorer", "min_gap", "seed")
# Which flags a rule reads; any other one given is refused.
READS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(rules.RULES, (*_BY_ONE, "temperature", "min_p")),
    "ranking": (*_BY_ONE, "top", "temperature"),
    "advantages": _BY_ONE,
    "curated": (*_BY_ONE, "temperature", "real", "real_share"),
    "agreement": ("scorer", "least", "seed"),
    "frontier": ("scorer", "seed"),
    "swap_vendi": ("features", "seed"),
    "swap_frechet": ("features", "exemplars", "seed"),
    "real_vs_generated": ("real", "seed"),
    "desirable": ("seed",),
}


def pair(
    data: Path,
    /,
    *,
    out: Path,
    rule: Literal[
        "best_vs_worst", "all_pairs", "neighbours", "best_vs_random", "ranking", "advantages", "curated", "agreement",
        "frontier", "swap_vendi", "swap_frechet", "real_vs_generated", "desirable",
    ] = "best_vs_worst",
    scorer: tuple[str, ...] = (),
    min_gap: float = 0.0,
    min_p: float = 0.5,
    temperature: float | None = None,
    top: int = 0,
    least: int = 0,
    real: Path | None = None,
    real_share: float = 0.0,
    features: str = "shapes_clip",
    exemplars: Path | None = None,
    seed: int = 0,
) -> str:  # fmt: skip
    """Make preferences of scores: P(first is better) = 1, or sigmoid(gap / temperature), for images of one prompt.

    Of comparisons (what `judge` writes, or people's pairs) the score of an image is its win rate inside its prompt.
    Groups of one, groups without spread and tied pairs are left out and counted; missing scores too. The gold scores
    are refused: they measure, and nothing is trained on them.

    Args:
        data: Record folder of scores, of comparisons, or for the rules of sets (swap_*, real_vs_generated, desirable)
            of images.
        out: Record folder to write.
        rule: Pairs by one scorer: best_vs_worst, all_pairs, neighbours, best_vs_random. Lists by one scorer: ranking
            (shares of duels won), advantages. curated keeps one image of each prompt. Pairs by several scorers:
            agreement, frontier (Pareto). Pairs of two images drawn for a prompt, swapped until the set of the better
            ones scores highest: swap_vendi, swap_frechet (DRAGON). real_vs_generated needs no judge (SPIN). desirable:
            each image is good.
        scorer: By whose scores; needed where the folder holds those of several.
        min_gap: Scores that differ by no more than this are tied.
        min_p: Leave out pairs with P below this; needs a temperature.
        temperature: Scale of the scores for soft labels; none means hard ones. For curated, of its random choice.
        top: Length of a ranking; 0 means all images.
        least: How many scorers must agree; 0 means all.
        real: Record folder of real images (of a judged one, the winners), for real_vs_generated and curated.
        real_share: Share of real images in what curated keeps.
        features: Of pictures, for swap_*: shapes_clip, clip=FOLDER or file.py:function.
        exemplars: Record folder of images that swap_frechet should come near.
        seed: Names what is random: best_vs_random, curated's choices, the order of swaps.
    """
    flags = {
        "scorer": scorer, "min_gap": min_gap, "min_p": min_p, "temperature": temperature, "top": top, "least": least,
        "real": real, "real_share": real_share, "features": features, "exemplars": exemplars, "seed": seed,
    }  # fmt: skip
    _check(rule, flags)
    counts: Counter[str] = Counter()
    if rule in gathering.RULES:
        rows, about = gathering.of_images(data, rule, flags, counts)
    else:
        rows, about = _of_scores(data, rule, flags, counts)
    left_out = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing"
    if not rows:
        raise InputError(f"{data}: gives no {_noun(rule)} by {about[0]}; left out: {left_out}")
    kept = {name: value for name, value in flags.items() if name in READS[rule] and not isinstance(value, Path)}
    named = {"scorer": about[0] if rule not in gathering.RULES else None, "rule": rule}
    others = [f for name in ("real", "exemplars") if (f := flags[name]) is not None]
    parents = tuple(folders.parent(out, folder) for folder in (data, *others))
    folders.begin(out, folders.Manifest("pair", kept | named, 1, parents, counts=dict(counts)))
    folders.write_part(out, "judgements", 0, rows)
    gaps = [r.score_gap for r in rows if r.score_gap is not None]
    gap = f", median gap {np.median(gaps):.3g}" if gaps else ""
    return (
        f"{out}: {len(rows)} {_noun(rule)}s of {about[1]} prompts by {about[0]} ({rule}){gap}; "
        f"left out: {left_out}; next: diffalign train RECIPE.py --data {out} --out …"
    )


def _noun(rule: str) -> str:
    return {"ranking": "ranking", "advantages": "list", "curated": "image", "desirable": "image"}.get(rule, "pair")


def _check(rule: str, flags: dict[str, Any]) -> None:
    """Raise InputError for flags out of range, or that the rule does not read."""
    if rule not in READS:
        raise InputError(f"rule {rule!r}: expected one of {', '.join(READS)}")
    for name, neutral in (("min_gap", 0.0), ("min_p", 0.5), ("temperature", None), ("top", 0), ("least", 0),
                          ("real", None), ("real_share", 0.0), ("exemplars", None), ("scorer", ())):  # fmt: skip
        if flags[name] != neutral and name not in READS[rule]:
            readers = [r for r, read in READS.items() if name in read]
            raise InputError(f"{name} = {flags[name]}: {rule} does not read it ({', '.join(readers)} do)")
    gap, p, temperature, share = (flags[n] for n in ("min_gap", "min_p", "temperature", "real_share"))
    if not (0 <= gap < math.inf) or (temperature is not None and not (0 < temperature < math.inf)):
        raise InputError(f"min_gap = {gap} (at least 0), temperature = {temperature} (more than 0): out of range")
    if not 0.5 <= p < 1 or not 0 <= share < 1 or flags["top"] == 1 or min(flags["top"], flags["least"]) < 0:
        raise InputError(
            f"min_p = {p} (0.5 to below 1), real_share = {share} (0 to below 1), top = {flags['top']} (0, or at least "
            f"2), least = {flags['least']} (at least 0): out of range"
        )
    if p > 0.5 and temperature is None:
        raise InputError(f"min_p = {p}: needs a temperature; without one every P is 1")
    if (rule == "real_vs_generated" or share > 0) != (flags["real"] is not None):
        raise InputError(f"real = {flags['real']}, real_share = {share}: a share needs the folder, and a folder a use")
    if (rule == "swap_frechet") != (flags["exemplars"] is not None):
        raise InputError(f"{rule}: needs --exemplars FOLDER, the images to come near")


def _of_scores(data: Path, rule: str, flags: dict[str, Any], counts: Counter[str]) -> tuple[list[Judgement], Any]:
    """Judgements of the groups of a folder of scores or comparisons; (by whom, of how many prompts)."""
    manifest = folders.open_folder(data, *PLACES)
    scored = manifest.stage == "score"
    if "rule" in manifest.arguments:
        raise InputError(f"{data}: holds the output of `pair`, expected that of `score`, or comparisons (of `judge`)")
    judges = grouping.judges(data, flags["scorer"], several=rule in SEVERAL) if scored else (WON,)
    if not scored and (flags["scorer"] or rule in SEVERAL):
        raise InputError(f"{data}: holds comparisons; {rule} and --scorer are for scores")
    if flags["least"] > len(judges):
        raise InputError(f"least = {flags['least']}: there are {len(judges)} scorers ({', '.join(judges)})")
    found = grouping.scored(data, judges, counts) if scored else grouping.compared(data, counts)
    rows: list[Judgement] = []
    name = " + ".join(judges)
    for group in found:
        usable = len(group.images) > 1 and (np.ptp(group.values, axis=1) > flags["min_gap"]).any()
        counts["groups of one"] += len(group.images) == 1
        counts["groups without spread"] += len(group.images) > 1 and not usable
        if usable:
            draw = stream("pairing", flags["seed"], group.prompt)
            rows += _judge(group, rule, flags, name, draw, counts)
    if rule == "curated" and flags["real"] is not None:
        rows += gathering.shared(flags["real"], len(rows), flags["real_share"], flags["seed"])
    return rows, (name, len(found))


def _judge(
    group: Group, rule: str, flags: dict[str, Any], name: str, rng: np.random.Generator, counts: Counter[str]
) -> list[Judgement]:
    """The judgements of one group with spread."""
    values, images = group.values[0], group.images
    if rule == "curated":
        return [gathering.good(group.prompt, images[rules.curated(values, flags["temperature"], rng)], rule, name)]
    if rule in LISTS:
        ranked = rules.ranking(values, flags["top"])
        if rule == "advantages":
            scores = rules.advantages(values)
        else:
            scores = values if name == WON else rules.duels(values, flags["temperature"], flags["min_gap"])
        return [_list(group.prompt, [images[i] for i in ranked], [float(scores[i]) for i in ranked], rule, name)]
    known = {"source": rule, "rater": name}
    if rule == "agreement":
        voted = rules.agreement(group.values, flags["least"] or len(group.values))
        counts["groups without agreement"] += not voted
        return [pair_record(group.prompt, images[i], images[j], p, **known) for i, j, p in voted]
    if rule == "frontier":
        met = rules.frontier(group.values)
        counts["groups without a dominated image"] += not met
        return [pair_record(group.prompt, images[i], images[j], 1.0, **known) for i, j in met]
    chosen = rules.RULES[rule](values, rng)
    decided = [(i, j, float(values[i] - values[j])) for i, j in chosen if values[i] - values[j] > flags["min_gap"]]
    scale = flags["temperature"]
    sure = [(i, j, gap, 1.0 if scale is None else 1 / (1 + math.exp(-gap / scale))) for i, j, gap in decided]
    kept = [entry for entry in sure if entry[3] >= flags["min_p"]]
    counts["tied pairs"] += len(chosen) - len(decided)
    counts[f"pairs with P below {flags['min_p']:g}"] += len(sure) - len(kept)
    return [pair_record(group.prompt, images[i], images[j], p, score_gap=gap, **known) for i, j, gap, p in kept]


def _list(prompt: str, images: Sequence[str], scores: Sequence[float], rule: str, name: str) -> Judgement:
    group = group_id(prompt, images)
    key = digest("judgement", group, rule, name)
    return Judgement(key, group, rule, tuple(images), scores=tuple(scores), source=rule, rater=name)
