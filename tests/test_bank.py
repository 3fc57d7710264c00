"""The bank of reference errors: the same run to the last bit, without the reference; refused where it does not fit."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from commands import contents

from diffalign import bank, folders, states
from diffalign.backbones.sdxl import SDXL
from diffalign.dataset import Dataset, Visit
from diffalign.inversion import Inversion
from diffalign.objectives import DPO, DSPO, IPO, KTO, SFT
from diffalign.policy import Policy
from diffalign.records import InputError
from diffalign.run import EMA, AdamW, Adaptation, Evaluate, Frozen, Full, HardCopy, LoRA, Run, States
from diffalign.times import Skewed
from diffalign.trainer import Trainer
from diffalign.training import cache, train


@pytest.fixture
def plain(models: dict[str, Path], pairs: Path, tmp_path: Path) -> Run:
    return Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data=str(pairs),
        out=str(tmp_path / "run"), cache=str(tmp_path / "cache"), steps=5, batch=4, resolution=32,
        optimizer=AdamW(lr=3e-3), log_every=2, save_every=5, caption_dropout=0.2, precision="float32",
        attention="sdpa",
    )  # fmt: skip


def results(run: Run) -> dict[str, bytes]:
    return contents(Path(run.out), without=("tensorboard", "cache", "run.json", "state.json", "README.md"))


def change(run: Run, **changes: Any) -> Run:
    return dataclasses.replace(run, **changes)


def errors_of(run: Run) -> Path:
    """The file of a run's bank, the only one in its cache."""
    (file,) = Path(run.cache).glob("reference-*/errors.float32")
    return file


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts passes of the reference, the autoencoder and the text encoders."""
    seen: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "past", _counting(Policy.past, seen))
        for name in ("encode_images", "encode_prompts", "encode_negative"):
            patch.setattr(SDXL, name, _counting(getattr(SDXL, name), seen))
        yield seen


def _counting(original: Any, seen: Counter[str]) -> Any:
    def count(*args: Any) -> Any:
        seen[original.__name__] += 1
        return original(*args)

    return count


# --- the same run


@pytest.mark.parametrize("policy", [LoRA(rank=2, alpha=4.0), Full()], ids=lambda a: type(a).__name__)
def test_written_through_read_again_and_prefilled_are_the_live_reference_bitwise(
    plain: Run, tmp_path: Path, policy: Adaptation
) -> None:
    run = change(plain, policy=policy)
    live = change(run, bank="off", out=str(tmp_path / "live"))
    train(live)
    with counted() as first:
        train(change(run, out=str(tmp_path / "first")))
    with counted() as second:
        train(change(run, out=str(tmp_path / "second")))
    assert first["past"] == 5
    assert not second, "no reference, no autoencoder, no text encoder"
    filled = change(run, cache=str(tmp_path / "filled"), out=str(tmp_path / "third"))
    said = cache(filled)
    assert said == f"{filled.cache}: latents, embeddings and reference errors; next: the same command with `train`"
    assert not Path(filled.out).exists()
    with counted() as third:
        train(filled)
    assert not third
    expected = results(live)
    for name in ("first", "second", "third"):
        assert results(change(run, out=str(tmp_path / name))) == expected, name
    one, other = (errors_of(r) for r in (run, filled))
    assert one.read_bytes() == other.read_bytes()


def test_a_prefill_in_other_parts_differs_by_rounding(plain: Run, tmp_path: Path) -> None:
    def told(run: Run) -> list[dict[str, float]]:
        return [{k: float(v) for k, v in step.metrics.items()} for step in Trainer(run)]

    live = told(change(plain, bank="off"))
    cache(change(plain, micro_batch=1))
    with counted() as seen:
        found = told(plain)
    assert not seen
    written = np.fromfile(errors_of(plain), "<f4")
    for a, b in zip(found, live, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4), "beta times what the errors differ by"
    same = change(plain, cache=f"{plain.cache}-same")
    cache(same)
    np.testing.assert_allclose(written, np.fromfile(errors_of(same), "<f4"), rtol=1e-6)
    exact = change(plain, precision="float64", cache=f"{plain.cache}64")
    live = told(change(exact, bank="off"))
    cache(change(exact, micro_batch=1))
    found = told(exact)
    for first in (found[0], live[0]):
        del first["accuracy"]  # of margins that are 0, or rounding on either side of it
    for a, b in zip(found, live, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_other_objectives_and_rates_use_it_and_every_margin_of_an_unmoved_policy_is_zero(plain: Run) -> None:
    cache(plain)
    with counted() as seen:
        for changes in ({"objective": DPO(beta=500.0)}, {"objective": IPO()}, {"micro_batch": 2}):
            still = change(plain, optimizer=AdamW(lr=0.0), **changes)
            margins = [float(step.metrics["margin"]) for step in Trainer(still)]
            if "micro_batch" in changes:
                assert margins == pytest.approx([0.0] * 5, abs=1e-2), "other parts round otherwise: beta times 1e-7"
            else:
                assert margins == [0.0] * 5
    assert not seen


def test_full_training_on_a_whole_bank_holds_one_copy_of_the_weights(plain: Run) -> None:
    run = change(plain, policy=Full())
    assert "reference" in Trainer(run).policy._pasts
    cache(run)
    assert Trainer(run).policy._pasts == {}
    assert "reference" in Trainer(change(run, steps=6)).policy._pasts, "one step is not in it"


def test_draws_come_again(plain: Run) -> None:
    run = change(plain, draws=2, batch=6, steps=8)
    with counted() as seen:
        list(Trainer(run))
    assert seen["past"] == 4, "twelve groups of two draws in batches of six"
    size = errors_of(run).stat().st_size
    assert size == 4 * 24 * 2, "four bytes an image and draw"
    data = Dataset(Path(run.data))
    visits = [v for s in range(8) for v in data.visits(0, s, 6, draws=2)]
    assert {v.draw for v in visits} == {0, 1}
    assert [v.group for v in visits] == [v.group for s in range(8) for v in data.visits(0, s, 6)]


def test_interrupted_anywhere_it_goes_on(plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves is a shorter file, or one with holes: both read as not computed."""
    cache(plain)
    file = errors_of(plain)
    whole = file.read_bytes()
    file.write_bytes(whole[:38] + bytes(len(whole) - 38 - 41))
    assert Trainer(plain).passes.bank is not None
    train(plain)
    assert file.read_bytes() == whole
    live = change(plain, bank="off", out=str(tmp_path / "live"))
    train(live)
    assert results(plain) == results(live)
    file.unlink()
    original, asked = bank.Bank.write, []

    def write(self: bank.Bank, visits: Any, values: Any) -> None:
        original(self, visits, values)
        asked.append(visits)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bank.Bank, "write", write)
        with pytest.raises(KeyboardInterrupt):
            cache(plain)
    with counted() as seen:
        cache(plain)
    assert seen["past"] == 3, "two of five steps were there"
    assert file.read_bytes() == whole


def test_no_room_is_an_error_with_a_name_and_nothing_wrong_is_read_later(tmp_path: Path, pairs: Path) -> None:
    import resource
    import signal

    data = Dataset(pairs)
    made = bank.Bank(tmp_path / "b", {}, data, torch.float32)
    visits = [Visit(g, 0) for g in data.groups]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (46, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*errors\.float32"):
            made.write(visits, torch.arange(24) + 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    again = bank.Bank(tmp_path / "b", {}, data, torch.float32)
    assert again.read(visits) is None
    assert torch.equal(again.read(visits[:5]), torch.arange(10) + 1.0)


def test_what_is_not_finite_is_not_kept(tmp_path: Path, pairs: Path) -> None:
    data = Dataset(pairs)
    made = bank.Bank(tmp_path / "b", {}, data, torch.float32)
    visits = [Visit(g, 3) for g in data.groups[:2]]
    made.write(visits, torch.tensor([1.0, float("nan"), 2.0, 3.0]))
    assert made.read(visits) is None
    assert made.read(visits[1:]).tolist() == [2.0, 3.0]


# --- refused


def test_anything_that_changes_the_reference_is_refused_by_name(
    plain: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(change(plain, steps=1))
    trainer.policy.export(tmp_path / "policy")
    rows = folders.records(Path(plain.data), "judgements")
    adapter, fewer = str(tmp_path / "policy"), worlds.pairs(tmp_path / "fewer")
    folders.write_part(fewer, "judgements", 0, rows[:5])

    at = errors_of(plain).parent

    def refused(run: Run) -> str:
        process = states.process(run.states, trainer.backbone.process)
        data = trainer.data if run.data == plain.data else Dataset(Path(run.data))
        with pytest.raises(InputError) as caught:
            bank.Bank(at, bank.key(run, data, process, (4, 8, 8), torch.device("cpu")), data, torch.float32)
        said = str(caught.value)
        assert said.startswith(f"{at}: holds reference errors of something else ("), said
        assert said.endswith("choose another --cache, or --bank off")
        assert "\n" not in said
        return said

    wanted: dict[str, dict[str, Any]] = {
        "seed: 0 -> 1": {"seed": 1},
        "resolution: 32 -> 64": {"resolution": 64},
        "caption_dropout: 0.2 -> 0.1": {"caption_dropout": 0.1},
        'precision: "float32" -> "float64"': {"precision": "float64"},
        'attention: "sdpa" -> "flash"': {"attention": "flash"},
        'captions: "prompt" -> "own"': {"captions": "own"},
        'noise: "shared" -> "independent"': {"states": States(noise="independent")},
        "times.class: ": {"states": States(times=Skewed())},
        'prediction: "native" -> "v_prediction"': {"states": States(prediction="v_prediction")},
        'init_lora: "" -> ': {"init_lora": adapter},
        'reference: "" -> ': {"policy": LoRA(rank=2, alpha=4.0, start=adapter)},
        "images: ": {"data": str(fewer)},
        "model: ": {"model": str(models["sd3"])},
    }
    for field, changes in wanted.items():
        said = refused(change(plain, **changes))
        assert field in said, said
    assert 'reference: "" -> ' in refused(change(plain, reference=Frozen(path=adapter)))
    with monkeypatch.context() as patch:
        patch.setattr(bank, "draw_time", lambda *names: 0.5)
        assert refused(plain).count(" -> ") == 1
        assert "probe: " in refused(plain)
        patch.setattr(bank, "FORMAT", 2)
        assert "format: 1 -> 2" in refused(plain)
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        Trainer(change(plain, seed=1))
    Trainer(change(plain, seed=1, bank="off"))
    worlds.images(tmp_path / "other" / "images")
    Trainer(change(plain, data=str(worlds.judged(tmp_path / "other", rows[:5])), steps=1))  # a bank of its own
    assert len(list(Path(plain.cache).glob("reference-*/errors.float32"))) == 2
    free = {"evaluate": Evaluate(preview_every=0), "log_with": "none"}
    Trainer(change(plain, objective=DPO(beta=1.0), batch=2, policy=LoRA(rank=1), **free))


def test_every_field_of_a_run_is_in_the_key_or_free(plain: Run, pairs: Path) -> None:
    names = {f.name for f in dataclasses.fields(Run)}
    assert set(bank.FREE) | set(bank.CONTENT) <= names, "a name that is no field"
    trainer = Trainer(change(plain, steps=1))
    found = bank.key(plain, trainer.data, trainer.process, (4, 8, 8), torch.device("cpu"))
    inside = {f.name for f in dataclasses.fields(States)} - {"weighting", "weighs"}
    assert names - set(bank.FREE) - {"config", "states"} | inside <= set(found)


def test_what_needs_more_than_errors_refuses_it(plain: Run, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for changes, why in [
        ({"objective": DSPO()}, "DSPO reads the reference's prediction, not its error alone"),
        ({"reference": EMA()}, "the reference moves (EMA)"),
        ({"reference": HardCopy(every=4)}, "the reference moves (HardCopy)"),
        ({"objective": SFT()}, "SFT compares with no reference"),
        ({"states": States(inversion=Inversion(steps=4))}, "a state reached by inversion needs the network itself"),
    ]:
        with pytest.raises(InputError) as caught:
            bank.wanted(change(plain, bank="on", **changes), nowhere)
        assert str(caught.value) == f"bank = on: {why}; use bank = auto"
        assert not bank.wanted(change(plain, **changes), nowhere)
    assert bank.wanted(plain, nowhere)
    assert bank.wanted(change(plain, objective=KTO()), nowhere)
    alone = change(plain, cache="")
    assert not bank.wanted(alone, nowhere), "one run by itself gains nothing"
    assert bank.wanted(change(alone, draws=1), nowhere)
    (nowhere / "index.json").parent.mkdir(parents=True)
    (nowhere / "index.json").touch()
    assert bank.wanted(alone, nowhere)
    said = cache(change(plain, objective=DSPO(), steps=1))
    assert said.startswith(f"{plain.cache}: latents and embeddings, no reference errors (DSPO reads ")


# --- each thing once


def test_an_image_is_passed_once_however_many_judgements_name_it(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for prompt, (a, b, c) in worlds.images(tmp_path / "images").items():
        judged = [(a, b, 1.0), (a, c, 0.2), (b, c, 0.7), (b, a, 0.4)]
        made = [worlds.pair(prompt, x.id, y.id, p, source=f"r{n}") for n, (x, y, p) in enumerate(judged)]
        rows += [dataclasses.replace(r, group=prompt) for r in made]
    run = Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2), steps=1, batch=6, resolution=32,
        data=str(worlds.judged(tmp_path, rows)), out=str(tmp_path / "run"),
    )  # fmt: skip
    trainer = Trainer(run)
    sizes, texts = [], []
    monkeypatch.setattr(trainer.policy.denoiser, "forward", _noting(trainer.policy.denoiser.forward, sizes))
    rows_of = trainer.material.embeddings.rows
    monkeypatch.setattr(trainer.material.embeddings, "rows", lambda ids: texts.append(len(ids)) or rows_of(ids))
    step = next(iter(trainer))
    assert sizes == [18, 18], "eighteen images, once by each of the two, for 24 judgements"
    assert texts == [6], "six prompts for eighteen images"
    assert float(step.metrics["margin"]) == 0.0


def _noting(original: Any, sizes: list[int]) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(args[0] if args else kwargs["sample"]))
        return original(*args, **kwargs)

    return forward
