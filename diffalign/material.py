"""What a run computes once and never again: latents per unique image and view, embeddings per unique text."""

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign import buckets, cache, decoding, folders, keeping, views, weights
from diffalign.backbones.base import Backbone, Conditioning
from diffalign.dataset import Dataset, Visit
from diffalign.progress import track
from diffalign.records import InputError
from diffalign.run import Run
from diffalign.streams import normal
from diffalign.views import View

Size = tuple[int, int]
_LOG = logging.getLogger("diffalign")
NEGATIVE = "the unconditional branch"


@dataclass(frozen=True)
class Material:
    """Latents, embeddings and sizes of a run's data, read row by row from memory-mapped files.

    Attributes:
        latents: The store of each size, (width, height) in pixels.
        negative: What the denoiser is told in the unconditional branch, one row.
        sizes: The backbone's `size_conditioning`.
    """

    run: Run
    data: Dataset
    latents: dict[Size, cache.Store]
    embeddings: cache.Store
    negative: Conditioning
    sizes: Callable[..., Conditioning]

    def view(self, visit: Visit) -> View:
        """The one view that all images of a group are shown in at a visit."""
        return self._view(visit, [self.data.images[i] for i in visit.group.images])

    def _view(self, visit: Visit, rows: Sequence[dict[str, Any]]) -> View:
        shown = self.run.pictures
        bucket = _bucket(self.run, [(row["width"], row["height"]) for row in rows])
        return views.draw(bucket, shown.crops, shown.flip, self.run.seed, visit.group.id, visit.draw)

    def x0(self, visits: Sequence[Visit]) -> Tensor:
        """Latents of the images of the visits, which must be of one size, (images, c, h, w)."""
        names, sizes = [], set()
        for visit in visits:
            rows = [self.data.images[i] for i in visit.group.images]
            view = self._view(visit, rows)
            names += [_row(row["sha256"], view) for row in rows]
            sizes.add((view.width, view.height))
        (size,) = sizes
        found = self.latents[size].rows(names)
        if self.run.pictures.posterior == "mean":
            return found["latents"]
        shape, seed = tuple(found["latents"].shape[1:]), self.run.seed
        noise = [normal("posterior", seed, i, v.draw, shape=shape) for v in visits for i in v.group.images]
        return found["latents"] + found["deviation"] * torch.stack([torch.from_numpy(n) for n in noise])

    def texts(self, visits: Sequence[Visit]) -> list[str]:
        """The text that each image of the visits is shown under."""
        return [self.data.shown(v.group, i) for v in visits for i in v.group.images]

    def sized(self, visits: Sequence[Visit]) -> Conditioning:
        """What the denoiser is told of the images' sizes and crops, one row an image."""
        parts = []
        for visit in visits:
            rows = [self.data.images[i] for i in visit.group.images]
            view, sizes = self._view(visit, rows), [(row["height"], row["width"]) for row in rows]
            parts.append(self.sizes(sizes, (view.height, view.width), (view.y, view.x)))
        return {n: torch.cat([part[n] for part in parts]) for n in parts[0]}

    def told(self, visits: Sequence[Visit]) -> Conditioning:
        """What the denoiser is told of the images' texts, sizes and crops, one row an image."""
        return self.embeddings.rows(self.texts(visits)) | self.sized(visits)

    def parts(self, visits: Sequence[Visit], size: int) -> list[Sequence[Visit]]:
        """The visits in runs of at most `size`, each of one picture size, in their order where there is one only."""
        if self.run.pictures.shape == "square":
            return [visits[i : i + size] for i in range(0, len(visits), size)]
        of: dict[Size, list[Visit]] = {}
        for visit in visits:
            view = self.view(visit)
            of.setdefault((view.width, view.height), []).append(visit)
        return [found[i : i + size] for _, found in sorted(of.items()) for i in range(0, len(found), size)]


def _row(sha256: str, view: View) -> str:
    return f"{sha256} {view.name}"


def _bucket(run: Run, sizes: Sequence[Size]) -> Size:
    if run.pictures.shape == "square":
        return run.resolution, run.resolution
    return buckets.shared(sizes, run.resolution)


def prepare(run: Run, data: Dataset, backbone: Backbone) -> Material:
    """The material of a run for a whole backbone; raises InputError where latents are not finite."""
    return Stores(run, data, backbone.denoiser.dtype).material(backbone)


def place(run: Run) -> Path:
    """Where a run's caches lie."""
    return Path(run.cache) if run.cache else Path(run.out) / "cache"


def dataset_of(run: Run) -> Dataset:
    """The data of a run, its tables mapped from the run's cache."""
    return Dataset(Path(run.data), captions=run.captions, labels=run.labels, cache=place(run))


class Stores:
    """The stores of a run, what is missing in them, and how it is computed."""

    def __init__(self, run: Run, data: Dataset, dtype: torch.dtype) -> None:
        self.run, self.data = run, data
        model = weights.fingerprint(weights.locate(run.model, run.config))
        key, shown = {"model": model, "dtype": str(dtype), "stored": run.pictures.stored}, run.pictures
        self.rows = _rows_by_size(run, data)
        # latents that were kept where this model drew pictures in this size are what training is shown, not encoded
        self.kept = {size: self._kept(model, size) if shown.posterior == "mean" else {} for size in self.rows}
        self.latents = {
            size: cache.Store(
                place(run),
                "latents",
                key | {"size": list(size), "posterior": shown.posterior} | ({"kept": True} if self.kept[size] else {}),
            )
            for size in self.rows
        }
        self.texts = cache.Store(place(run), "texts", key)
        self.negative = cache.Store(place(run), "negative", key)

    def _kept(self, model: str, size: Size) -> dict[str, Path]:
        """The kept latents of the images that are as large as they are shown, by image id."""
        table = self.data.images.table
        rows = [row for row in self.rows[size] if (table["width"][row].as_py(), table["height"][row].as_py()) == size]
        return keeping.index(self.data.folder, [table["id"][row].as_py() for row in rows], model)

    def lacking(self) -> bool:
        """Whether anything has to be computed."""
        pictures = any(_lacks(self.latents[s], self._names(s)) for s in self.rows)
        return pictures or _lacks(self.texts, self.data.shown_texts()) or bool(self.negative.missing([NEGATIVE]))

    def _views(self, size: Size) -> list[View]:
        return views.every(size, self.run.pictures.crops, self.run.pictures.flip)

    def _names(self, size: Size) -> Iterator[str]:
        """The rows of a size, one image after the other as they are stored."""
        shas, shown = self.data.images.table["sha256"], self._views(size)
        return (_row(shas[row].as_py(), view) for row in self.rows[size] for view in shown)

    def material(self, backbone: Backbone) -> Material:
        """What there is, after what is missing has been computed; raises InputError on a size the model cannot draw."""
        for width, height in self.latents:
            backbone.latent_shape(height, width)
        for store in (*self.latents.values(), self.texts, self.negative):
            store.reopen()
        for size, store in self.latents.items():
            if _lacks(store, self._names(size)):
                self._fill_latents(backbone, size, store)
        if _lacks(self.texts, self.data.shown_texts()):
            cut = _lacking(self.texts, list(cache.cut(list(self.data.shown_texts()), 32)))
            cache.fill(self.texts, track(cut, "texts", len(cut)), backbone.encode_prompts, self.run.pictures.stored)
        if self.negative.missing([NEGATIVE]):
            row = {name: value[:1] for name, value in backbone.encode_negative().items()}
            cache.fill(self.negative, [[NEGATIVE]], lambda _: row, self.run.pictures.stored)
        negative = self.negative.rows([NEGATIVE])
        return Material(self.run, self.data, self.latents, self.texts, negative, backbone.size_conditioning)

    def _fill_latents(self, backbone: Backbone, size: Size, store: cache.Store) -> None:
        shown = {view.name: view for view in self._views(size)}
        ids = self.data.images.table["id"]
        of = {}
        for row, name in zip((row for row in self.rows[size] for _ in shown), self._names(size), strict=True):
            of.setdefault(name, ids[row].as_py())
        cut = _lacking(store, list(cache.cut(list(of), 16)))
        wanted = {of[name]: name.partition(" ")[0] for batch in cut for name in batch}
        source = _Pictures(self.data.folder, wanted)

        def encode(batch: Sequence[str]) -> dict[str, Tensor]:
            own = {n for n in batch if of[n] in self.kept[size] and not shown[n.partition(" ")[2]].mirrored}
            if not own:
                return made(batch)
            rows = keeping.rows(self.kept[size], [of[n] for n in batch if n in own])
            known = {n: rows[of[n]] for n in batch if n in own}
            if rest := [n for n in batch if n not in own]:
                known |= dict(zip(rest, made(rest)["latents"].cpu(), strict=True))
            return {"latents": torch.stack([known[n] for n in batch])}

        def made(batch: Sequence[str]) -> dict[str, Tensor]:
            taken = torch.stack([source.pixels(of[n], shown[n.partition(" ")[2]]) for n in batch])
            pixels = views.unit(taken.to(backbone.pipe.vae.device))
            found = _encoded(backbone, pixels, self.run.pictures.posterior)
            for name, ok in zip(batch, found["latents"].isfinite().flatten(1).all(1).tolist(), strict=True):
                if not ok:
                    raise InputError(f"{self.data.folder}: the latents of image {of[name]} are not finite")
            return found

        title = "latents" if len(self.latents) == 1 else f"latents {size[0]}x{size[1]}"
        cache.fill(store, track(cut, title, len(cut)), encode, self.run.pictures.stored)


def _encoded(backbone: Backbone, pixels: Tensor, posterior: str) -> dict[str, Tensor]:
    """Latents of pictures: all at once or, where the memory does not take that, half and half.

    Never one alone, which would be rounded otherwise: raises InputError where two do not fit.
    """
    try:
        if posterior == "mean":
            return {"latents": backbone.encode_images(pixels)}
        return dict(zip(("latents", "deviation"), backbone.posterior(pixels), strict=True))
    except torch.OutOfMemoryError:
        if len(pixels) < 4:
            height, width = pixels.shape[2:]
            raise InputError(
                f"size {width}x{height}: {len(pixels)} pictures do not fit the device's memory where they are encoded; "
                "choose a smaller resolution"
            ) from None
    half = len(pixels) // 2
    parts = [_encoded(backbone, part, posterior) for part in (pixels[:half], pixels[half:])]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _lacks(store: cache.Store, names: Iterable[str]) -> bool:
    """Whether any row is missing; the names are looked at some at a time, since there may be many."""
    names = iter(names)
    return any(store.missing(chunk) for chunk in iter(lambda: list(itertools.islice(names, 4096)), []))


def _lacking(store: cache.Store, cut: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The batches with a row that is missing: whole ones, so that an interruption does not change what is computed."""
    missing = store.missing(name for batch in cut for name in batch)
    return [batch for batch in cut if not missing.isdisjoint(batch)]


class _Pictures:
    """The pictures of a folder (id -> sha256), each read once, asked for in the order in which they are stored."""

    def __init__(self, folder: Path, wanted: Mapping[str, str]) -> None:
        self.folder, self._wanted = folder, wanted
        self._source = folders.image_bytes(folder, wanted)
        self._name = ""
        self._picture = None

    def pixels(self, name: str, view: View) -> Tensor:
        """The view of a picture; raises InputError where it cannot be decoded, or is not the one on record."""
        while self._name != name:
            self._name, data = next(self._source)
            if self._name != name:
                continue
            if hashlib.sha256(data).hexdigest() != self._wanted[name]:
                # its latents would lie under another picture's name, for all runs that share the cache
                raise InputError(f"{self.folder}: image {name}: its bytes are not those of its sha256; import it again")
            try:
                self._picture = decoding.rgb(data)
            except decoding.ERRORS as error:
                raise InputError(f"{self.folder}: image {name} cannot be decoded ({error})") from None
        return views.pixels(self._picture, view)


def _rows_by_size(run: Run, data: Dataset) -> dict[Size, list[int]]:
    """(width, height) -> the images shown in it, as rows in stored order; says how much crops hide."""
    table = data.images.table
    sizes = list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    owners, rows = (found.tolist() for found in data.index.places())
    found: dict[Size, set[int]] = {}
    cut: Counter[bool] = Counter()
    most = 0.0
    for _, members in itertools.groupby(zip(owners, rows, strict=True), key=lambda pair: pair[0]):
        images = [row for _, row in members]
        bucket = _bucket(run, [sizes[row] for row in images])
        found.setdefault(bucket, set()).update(images)
        worst = max(buckets.hidden(sizes[row], bucket) for row in images)
        cut[worst > run.pictures.most_hidden] += 1
        most = max(most, worst)
    if cut[True]:
        share, groups = run.pictures.most_hidden, cut.total()
        remedy = "" if run.pictures.shape == "buckets" else "; --pictures.shape buckets hides less"
        _LOG.warning(
            f"{data.folder}: the crop hides more than {share:.0%} of an image in {cut[True]} of {groups} groups "
            f"(at most {most:.0%}){remedy}"
        )
    return {bucket: sorted(images) for bucket, images in sorted(found.items())}
