"""Entries -> judgements, by labels alone: a policy says which dimension, and what becomes of lists and ties."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from diffalign import conversions
from diffalign.readers.base import Entry
from diffalign.records import Judgement, digest, group_id, prompt_id
from diffalign.records import pair as pair_record

SILENT = ("unlabelled", "no_preference")


@dataclass(frozen=True)
class Policy:
    """How verdicts become judgements: which dimension, what of lists and ties, and whether pairs are taken apart."""

    dimension: str
    lists: conversions.Lists
    ties: conversions.Ties
    unpaired: bool

    def judgements(self, entry: Entry, images: Sequence[str], source: str) -> tuple[list[Judgement], str]:
        """(the judgements on the images of an entry, why there are none)."""
        prompt = prompt_id(entry.prompt)
        said = [v for v in entry.verdicts if v.status not in SILENT]
        heard = dataclasses.replace(entry, verdicts=tuple(said))
        given = [_judgement(heard, n, prompt, images, source) for n in range(len(said))]
        rows = [r for one in self._by_rater(given) for r in conversions.to_pairs(one, prompt, self.lists)]
        kept = [row for row in map(self._tied, rows) if row]
        if self.unpaired:
            kept = [r for row in kept for r in conversions.to_unpaired(row, prompt)]
        why = "unlabelled" if not said else f"not in dimension {self.dimension}" if not rows else rows[0].status
        return kept, why

    def _by_rater(self, rows: Sequence[Judgement]) -> list[Judgement]:
        """The dimension wanted of what each rater says."""
        raters = dict.fromkeys(row.rater for row in rows)
        return [
            row
            for rater in raters
            for row in conversions.in_dimension([r for r in rows if r.rater == rater], self.dimension)
        ]

    def _tied(self, row: Judgement) -> Judgement | None:
        apart = self.unpaired and row.status in ("both_good", "both_bad")
        return row if apart else conversions.tied(row, self.ties)


def _judgement(entry: Entry, number: int, prompt: str, images: Sequence[str], source: str) -> Judgement:
    said = entry.verdicts[number]
    known = {"status": said.status, "weight": said.weight, "dimension": said.dimension, "rater": said.rater}
    if said.kind == "pair":
        first, second = images
        known["votes"] = said.votes
        return pair_record(prompt, first, second, said.p, source=source, **known)
    group = group_id(prompt, images)
    name = digest("judgement", group, *images, source, said.rater, said.dimension)
    return Judgement(name, group, said.kind, tuple(images), p=said.p, scores=said.scores, source=source, **known)
