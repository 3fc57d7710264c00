"""The policy's past selves: what never moves never moves, what moves does so by its rule, and a resume is exact."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch
import worlds
from torch import Tensor

from diffalign import dataset, states, training
from diffalign.backbones.base import residuals
from diffalign.objectives import DPO, KTO, SFT, AlphaDPO, Safeguarded
from diffalign.objectives.base import Errors, Objective, Outcome, Pairs
from diffalign.records import InputError, Judgement, digest, group_id
from diffalign.run import EMA, AdamW, Frozen, Full, HardCopy, LoRA, Run, States
from diffalign.times import Grid, InverseSNR, MinSNR, Skewed
from diffalign.trainer import Trainer

ADAPTATIONS = [LoRA(rank=2, alpha=4.0), Full()]
MOVING = [
    (LoRA(rank=2, alpha=4.0), HardCopy(every=3)),
    (Full(), EMA(decay=0.7, every=2)),
    (LoRA(rank=2, alpha=4.0), HardCopy(every=2, until_divergence=1e-3, probe=5)),
]


@pytest.fixture(scope="module")
def run(models: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that the tests vary; one folder, so that latents and embeddings are computed once."""
    return Run(
        model=str(models["sdxl"]), objective=DPO(beta=2000.0), policy=LoRA(rank=2, alpha=4.0), data=str(pairs),
        out=str(tmp_path_factory.mktemp("references")), steps=6, batch=4, resolution=32, optimizer=AdamW(lr=3e-3),
        save_every=3, log_every=1,
    )  # fmt: skip


def change(run: Run, **changes: object) -> Run:
    return dataclasses.replace(run, **changes)


def look(trainer: Trainer, name: str = "reference") -> Tensor:
    """What a past self says of the first groups at their first draw."""
    visits = trainer.data.visits(trainer.run.seed, 0, 4)
    x0, t = states.clean(trainer.run, trainer.process, trainer.material, visits)
    noised = states.forward(trainer.run, trainer.process, x0, t, visits)
    given = trainer.passes.conditioning(visits)
    if name == "policy":
        with torch.no_grad():
            return residuals(trainer.backbone, trainer.denoiser, noised, given)
    return trainer.passes.past(name, noised, given)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in trainer.policy.parameters.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("policy", ADAPTATIONS, ids=repr)
def test_frozen_reference_does_not_change_in_twenty_steps_nor_across_a_resume(run: Run, policy, tmp_path: Path) -> None:
    run = change(run, policy=policy, steps=20)
    trainer = Trainer(run)
    first = look(trainer)
    assert torch.equal(first, look(trainer, "policy")), "policy = reference at step 0"
    for step in trainer:
        if step.index % 5 == 0:
            assert torch.equal(look(trainer), first)
        if step.index == 10:
            trainer.save(tmp_path / "checkpoint-10")
    assert not torch.equal(look(trainer, "policy"), first)
    assert not trainer.policy.moving()
    again = Trainer(run)
    again.load(tmp_path / "checkpoint-10")
    assert torch.equal(look(again), first)
    assert [s.index for s in again] == list(range(11, 21))
    assert torch.equal(look(again), first)
    assert same(weights(again), weights(trainer))


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
@pytest.mark.parametrize("policy", ADAPTATIONS, ids=repr)
def test_the_first_margin_is_0_in_every_precision(
    run: Run, models: dict[str, Path], family: str, policy, tmp_path: Path
) -> None:
    for precision in ("float32", "bfloat16", "float16", "float64"):
        out = str(tmp_path / precision)
        trainer = Trainer(change(run, model=str(models[family]), policy=policy, precision=precision, out=out))
        first = next(iter(trainer)).metrics
        assert (first["margin"], first["accuracy"]) == (0.0, 0.5), precision
        assert first["chosen_error"] == first["rejected_error"] == 0.0, precision


@pytest.mark.parametrize("policy", ADAPTATIONS, ids=repr)
def test_hard_copies_are_the_policy_at_their_step_and_nothing_else(run: Run, policy) -> None:
    trainer = Trainer(change(run, policy=policy, reference=HardCopy(every=3), steps=8))
    held = look(trainer, "policy")
    for step in trainer:
        if step.index % 3 == 0:
            held = look(trainer, "policy")
        assert torch.equal(look(trainer), held)
    assert step.metrics["margin"] != 0


@pytest.mark.parametrize("policy", ADAPTATIONS, ids=repr)
def test_moving_average_is_its_formula(run: Run, policy) -> None:
    trainer = Trainer(change(run, policy=policy, reference=EMA(decay=0.7, every=2), steps=5))
    average = weights(trainer)
    for step in trainer:
        if step.index % 2 == 0:
            average = {n: 0.7 * average[n] + (1 - 0.7) * p for n, p in weights(trainer).items()}
        found = {n.removeprefix("reference."): t for n, t in trainer.policy.moving().items()}
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, average[name], rtol=1e-5, atol=1e-8)
    assert found.keys() == average.keys()


def test_a_copy_lent_to_the_network_gives_the_trajectory_of_adapters_off(run: Run) -> None:
    off, lent = Trainer(run), Trainer(change(run, reference=HardCopy(every=10**6)))
    for a, b in zip(off, lent, strict=True):
        assert all(torch.equal(a.metrics[k], b.metrics[k]) for k in a.metrics)
    assert same(weights(off), weights(lent))


def test_lending_leaves_no_trace_even_where_the_body_fails(run: Run) -> None:
    trainer = Trainer(change(run, reference=HardCopy(every=1)))
    next(iter(trainer))
    before, said = weights(trainer), look(trainer, "policy")
    with pytest.raises(KeyError), trainer.policy.reference(trainer.denoiser):
        raise KeyError
    assert same(weights(trainer), before)
    assert torch.equal(look(trainer, "policy"), said)


@pytest.mark.parametrize(("policy", "reference"), MOVING, ids=repr)
def test_resume_is_exact_with_a_moving_reference(run: Run, policy, reference, tmp_path: Path) -> None:
    run = change(run, policy=policy, reference=reference)
    whole = Trainer(run)
    metrics = [{k: float(v) for k, v in step.metrics.items()} for step in whole]
    first = Trainer(run)
    head = [{k: float(v) for k, v in step.metrics.items()} for _, step in zip(range(4), first, strict=False)]
    first.save(tmp_path / "checkpoint-4")
    second = Trainer(run)
    second.load(tmp_path / "checkpoint-4")
    tail = [{k: float(v) for k, v in step.metrics.items()} for step in second]
    assert head + tail == metrics
    assert same(weights(second), weights(whole))
    assert same(second.policy.moving(), whole.policy.moving())
    assert whole.policy.moving()


@final
@dataclass(frozen=True)
class Away(Objective):
    """reference error - policy error of the chosen image: whoever follows it forgets the data."""

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        return Outcome((errors.reference - errors.policy)[judgement.chosen], -errors.policy.detach())


def test_guard_stops_the_copying_for_good(run: Run) -> None:
    far = change(run, objective=Away(), optimizer=AdamW(lr=1e-2), steps=8)
    limit = 1e-3
    trainer = Trainer(change(far, reference=HardCopy(every=2, until_divergence=limit, probe=12)))
    start = trainer.start_error
    held, stopped = look(trainer), False
    for step in trainer:
        now = look(trainer)
        if stopped or step.index % 2:
            assert torch.equal(now, held)
        else:
            assert torch.equal(now, look(trainer, "policy"))
            assert trainer.divergence == trainer._winner_error() - start
        held, stopped = now, trainer.divergence > limit
        assert step.metrics["reference_divergence"].item() == pytest.approx(trainer.divergence, rel=1e-6)
    assert stopped, "the run went far enough to be stopped"
    assert trainer.divergence > limit
    assert not torch.equal(look(trainer, "policy"), held)


def test_divergence_is_the_winners_error_over_that_of_the_start(run: Run) -> None:
    trainer = Trainer(change(run, reference=HardCopy(every=1, until_divergence=1.0, probe=5)))
    visits = trainer.data.visits(0, 0, 5)
    errors = trainer.passes.measure(visits)[0].reference
    pairs = dataset.judge(visits, "pair")
    p = pairs.p.to(errors)
    winners = p * errors[pairs.chosen] + (1 - p) * errors[pairs.rejected]
    assert trainer.start_error == pytest.approx(winners.mean().item(), rel=1e-6)
    assert trainer.divergence == 0


@pytest.fixture(scope="module")
def earlier(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished round: its folder holds `policy/`."""
    place = tmp_path_factory.mktemp("earlier")
    training.train(change(run, out=str(place), steps=3, seed=5))
    return place


def test_a_round_goes_on_from_the_one_before(run: Run, earlier: Path, tmp_path: Path) -> None:
    base = Trainer(run)
    started = Trainer(change(run, policy=LoRA(rank=2, alpha=4.0, start=str(earlier))))
    there = look(started)
    assert not torch.equal(there, look(base))
    assert torch.equal(there, look(started, "policy")), "the reference is where the round starts"
    fresh = Trainer(change(run, reference=Frozen(str(earlier / "policy"))))
    assert torch.equal(look(fresh), there), "the same adapter as a reference"
    assert torch.equal(look(fresh, "policy"), look(base))
    scaled = Trainer(change(run, policy=LoRA(rank=2, alpha=1.0, start=str(earlier))))
    torch.testing.assert_close(look(scaled), there, rtol=1e-5, atol=1e-6)
    assert next(iter(started)).metrics["margin"] == 0
    for _ in started:
        assert torch.equal(look(started), there)
    started.save(tmp_path / "checkpoint-6")
    again = Trainer(started.run)
    again.load(tmp_path / "checkpoint-6")
    assert torch.equal(look(again), there)


def test_full_training_reads_its_reference_from_a_folder(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    full = change(run, policy=Full(), out=str(tmp_path / "full"), steps=2)
    training.train(full)
    trained = Trainer(change(full, steps=3))
    trained.load(tmp_path / "full" / "checkpoint-2")
    next_round = Trainer(change(full, out=str(tmp_path / "next"), reference=Frozen(str(tmp_path / "full"))))
    assert torch.equal(look(next_round), look(trained, "policy"))
    same_model = Trainer(change(full, out=str(tmp_path / "next"), reference=Frozen(str(models["sdxl"]))))
    assert torch.equal(look(same_model), look(same_model, "policy"))


def test_what_does_not_fit_is_refused_in_one_line(run: Run, earlier: Path, tmp_path: Path) -> None:
    adapter = earlier / "policy" / "pytorch_lora_weights.safetensors"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(adapter.read_bytes()[:100])
    for policy, reference, text in [
        (LoRA(rank=3, start=str(earlier)), Frozen(), "has rank 2, expected that of the policy, 3"),
        (LoRA(rank=2, targets=("to_q",), start=str(earlier)), Frozen(), "does not fit this policy"),
        (LoRA(rank=2), Frozen(str(tmp_path / "nowhere")), "no such adapter file"),
        (LoRA(rank=2), Frozen(str(cut)), "is not a whole safetensors file"),
        (Full(), Frozen(str(earlier)), "holds no safetensors of the denoiser"),
    ]:
        with pytest.raises(InputError, match=text) as found:
            Trainer(change(run, policy=policy, reference=reference))
        assert "\n" not in str(found.value)
    for wrong, text in [
        ({"objective": SFT(), "reference": EMA()}, "reference-free"),
        ({"old": EMA()}, "no previous policy"),
    ]:
        with pytest.raises(ValueError, match=text):
            change(run, **wrong)
    for make in (lambda: EMA(1.0), lambda: EMA(0.5, 0), lambda: HardCopy(0), lambda: HardCopy(1, -1.0)):
        with pytest.raises(ValueError, match="at least 1"):
            make()


def test_a_run_does_not_go_on_from_an_adapter_that_has_changed(run: Run, earlier: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes((earlier / "policy" / "pytorch_lora_weights.safetensors").read_bytes())
    run = change(run, reference=Frozen(str(adapter)), steps=2, out=str(tmp_path / "run"))
    training.train(run)
    adapter.write_bytes(adapter.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match="content of"):
        training.train(change(run, log_every=2))


@final
@dataclass(frozen=True)
class Against(Objective):
    """policy error of the chosen image / old error: reads a previous policy and no reference."""

    judgement: ClassVar[type[Pairs]] = Pairs
    reference_free: ClassVar[bool] = True
    needs_old: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("policy_old",)

    def __call__(self, errors: Errors, judgement: Pairs, total: Tensor | None = None) -> Outcome:
        self.check(errors, judgement)
        ratio = errors.policy / errors.old
        return Outcome((ratio + 0 * errors.cross["policy_old"])[judgement.chosen], -ratio.detach())


def test_previous_policy_is_a_past_self_of_its_own(run: Run) -> None:
    run = change(run, objective=Against(), steps=4)
    still, following = Trainer(run), Trainer(change(run, old=HardCopy(every=1)))
    first = look(still, "old")
    losses = [step.metrics["loss"].item() for step in still]
    assert torch.equal(look(still, "old"), first)
    assert losses[0] == pytest.approx(1, abs=1e-6)
    assert losses[-1] != pytest.approx(1, abs=1e-4)
    for step in following:
        assert torch.equal(look(following, "old"), look(following, "policy"))
        assert step.metrics["loss"].item() == pytest.approx(1, abs=1e-6), "each step starts from the previous policy"
    with pytest.raises(InputError, match="compares with none"), still.policy.reference(still.denoiser):
        pass


def unpaired(place: Path) -> Path:
    """One image a group, half of them desirable."""
    rows = []
    for prompt, drawn in worlds.images(place / "images").items():
        for n, image in enumerate(drawn):
            ids = (image.id,)
            name = digest("judgement", image.id)
            rows.append(Judgement(name, group_id(prompt, ids), "unpaired", ids, p=float(n % 2), source="test"))
    return worlds.judged(place, rows)


@pytest.mark.parametrize(
    "objective",
    [
        KTO(beta=4000.0, weights=(4.0, 1.0)),
        AlphaDPO(beta=2000.0),
        Safeguarded(DPO(beta=2000.0), mu=0.5),
        DPO(beta=2000.0),
    ],
    ids=lambda o: type(o).__name__,
)
def test_a_batch_in_parts_is_the_batch(run: Run, objective: Objective, tmp_path: Path) -> None:
    if isinstance(objective, KTO):
        run = change(run, data=str(unpaired(tmp_path / "unpaired")))
    run = change(
        run, objective=objective, batch=8, steps=2, optimizer=AdamW(lr=2e-2), out=str(tmp_path), precision="float64"
    )
    trainer = Trainer(run)
    _ = list(trainer)
    trained = weights(trainer)

    def gradient(**changes: object) -> Tensor:
        """Loss and gradient of the batch after the last, from the trained weights."""
        trainer.run, trainer.step = change(run, optimizer=AdamW(lr=0.0, weight_decay=0.0), **changes), 2
        trainer.policy.restore(trained)
        metrics = trainer._advance().metrics
        return torch.stack([metrics["loss"].double(), metrics["gradient_norm"].double()])

    whole, parts = gradient(), gradient(micro_batch=4)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=0)
    assert torch.equal(gradient(parity="micro"), whole), "one micro-batch is the batch"
    small = gradient(micro_batch=4, parity="micro")
    if objective.coupled:
        assert not torch.allclose(small, whole, rtol=1e-6, atol=0)
    else:
        assert torch.equal(small, parts)


def test_weights_of_times_multiply_losses_or_margins(run: Run) -> None:
    trainer = Trainer(change(run, steps=3))
    for _ in trainer:
        pass
    visits = trainer.data.visits(0, 0, 8)
    bare, judgement, ones = trainer.passes.measure(visits)
    assert torch.equal(ones, judgement.weight)
    for weighting in (MinSNR(), InverseSNR()):
        plain = dataclasses.replace(trainer.passes, run=change(run, states=States(weighting=weighting)))
        errors, _, weight = plain.measure(visits)
        scale = weighting(plain.noised(visits, plain.conditioning(visits)), plain.process)
        assert torch.equal(errors.policy, bare.policy)
        assert torch.equal(weight, scale[judgement.chosen]), "one time, one weight a group"
        plain = dataclasses.replace(plain, run=change(run, states=States(weighting=weighting, weighs="errors")))
        errors, _, weight = plain.measure(visits)
        assert torch.equal(weight, judgement.weight)
        for name in ("policy", "reference"):
            torch.testing.assert_close(getattr(errors, name), (scale * getattr(bare, name)).float(), rtol=1e-6, atol=0)
        margin, wide = (run.objective(e, judgement).reward.double() for e in (bare, errors))
        torch.testing.assert_close(wide, scale * margin, rtol=1e-3, atol=1e-3)


def test_step_loss_is_the_mean_of_weighted_losses(run: Run) -> None:
    weighted = Trainer(change(run, states=States(weighting=InverseSNR(), times=Skewed()), steps=1))
    visits = weighted.data.visits(0, 0, 4)
    scale = InverseSNR()(weighted.passes.noised(visits, {}), weighted.process)[::2].mean().item()
    (step,) = weighted
    assert step.metrics["loss"].item() == pytest.approx(math.log(2) * scale, rel=1e-6)


def test_process_is_what_the_states_ask_for(run: Run, models: dict[str, Path]) -> None:
    turbo = Trainer(change(run, states=States(times=Grid(4), zero_terminal_snr=True), steps=4))
    assert turbo.process.bars[-1] == 0
    times = [turbo.passes.noised(turbo.data.visits(0, s, 4), {}).t for s in range(6)]
    assert set(torch.cat(times).tolist()) == {249, 499, 749, 999}
    assert all(math.isfinite(float(v)) for step in turbo for v in step.metrics.values())
    for wanted, model, text in [
        (States(zero_terminal_snr=True), "sd3", "states.zero_terminal_snr = True: this model is a flow"),
        (States(prediction="epsilon"), "sd3", "states.prediction = epsilon: this model is a flow"),
        (States(zero_terminal_snr=True, prediction="v_prediction"), "sdxl", "zero terminal SNR"),
    ]:
        with pytest.raises(InputError, match=text) as found:
            Trainer(change(run, model=str(models[model]), states=wanted))
        assert "\n" not in str(found.value)
