"""What a run needs, before anything is allocated: counts of published architectures, and what follows from them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffalign import counting, material, optimizers
from diffalign.accelerators import CARDS, Cut
from diffalign.backbones.hollow import Hollow, configurations, hollow
from diffalign.counting import Counter
from diffalign.doctor import Consultation, doctor
from diffalign.inversion import Inversion
from diffalign.needs import Needs, Pass, asked, data_of, needs
from diffalign.objectives import DPO, KTO, NFT, SFT, Anchored
from diffalign.optimizers import Adafactor, AdamW, AdamW8bit, Optimizer, Prodigy
from diffalign.recipes import load_recipe
from diffalign.records import InputError
from diffalign.run import EMA, Evaluate, Full, HardCopy, LoRA, Run, States
from diffalign.trainer import Trainer
from diffalign.training import cache, train
from diffalign.views import Pictures

GIB = 2**30


@pytest.fixture(scope="module")
def sd15() -> Run:
    return dataclasses.replace(load_recipe("sd15_dpo").run, resolution=512, batch=8, micro_batch=4, policy=Full())


def test_counts_of_a_published_architecture(sd15: Run) -> None:
    """Stable Diffusion 1.5 at 512 pixels: 0.860 B parameters, 2.47 TFLOP an image both ways, 0.80 forward."""
    found = needs(sd15, "h200")
    assert found.parameters == found.trained == 859_520_964
    assert found.images == 2
    assert found.flops["policy forward and backward"] == pytest.approx(2 * 2.4698e12, rel=1e-4)
    assert found.flops["reference"] == pytest.approx(2 * 0.80327e12, rel=1e-4)
    assert found.memory["gradients"] == 4 * found.trained
    assert found.memory["optimizer (AdamW)"] == 8 * found.trained + 4 * 686, "and a count of steps a tensor"
    by = {(s.micro, s.checkpointing): s for s in found.settings if not s.chunk}
    assert by[2, "off"].activations == 2 * by[1, "off"].activations
    assert by[8, "full"].activations < by[8, "selective"].activations < by[8, "off"].activations
    assert by[1, "full"].activations == 2 * found.trained, "the working copy's gradients, when activations are gone"
    assert found.memory["past selves"] == 2 * found.trained, "the reference is no wider than what computes"
    encode, decode = hollow(sd15.model).costs(512)
    assert encode == 5 * 128 * 512 * 512 * 4, "five maps of the first block"
    on_host = 4 * 83_653_863 + 4 * 123_060_480 + 2 * encode
    beside = 10 * found.trained - 2 * found.trained + 4 * 83_653_863 + 4 * 123_060_480
    assert found.before == max(on_host, beside), "full training reads all in float32; previews are encoded beside it"
    assert found.drawing > decode > 0
    assert by[4, "off"].speed > by[1, "off"].speed, "launches are shared"
    assert found.disk["latents of a thousand"] == 1000 * (4 * 64 * 64 * 4 + 20), "a name and a check beside"


def test_what_is_said(sd15: Run) -> None:
    said = doctor(Consultation(sd15, "4090"), name="mine")
    assert said.startswith("mine on stable-diffusion-v1-5/stable-diffusion-v1-5: 0.860 B parameters, 859.5 M trained")
    assert "memory on 4090 (23.5 GiB), micro_batch 4, gradient_checkpointing selective (auto):" in said
    parts = [float(x) for x in re.findall(r"^  .* ([\d.]+) GiB$", said, re.M)]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.05)
    advice = said.splitlines()[-1]
    assert advice.startswith("suggested: --micro-batch ")
    assert float(re.search(r"\(([\d.]+) GiB", advice)[1]) <= CARDS["4090"].memory


@pytest.mark.usefixtures("uncounted")
def test_less_is_needed_by_less(sd15: Run) -> None:
    lora = needs(dataclasses.replace(sd15, policy=LoRA(rank=4)), "h200")
    assert lora.trained < 2_000_000
    assert lora.memory["past selves"] == 0, "the adapters are off"
    assert lora.fixed < 4 * GIB


def test_a_local_folder_is_read_without_its_weights(models: dict[str, Path], tmp_path: Path) -> None:
    for family in ("sdxl", "sd3", "flux"):
        found = hollow(str(models[family]))
        denoiser = found.backbone.denoiser
        assert all(p.is_meta for p in denoiser.parameters())
        told, x = found.told(2, torch.float32), found.latents(2, 32, torch.float32)
        time = torch.empty(2, device="meta")
        assert found.backbone.predict(denoiser, x, time, told).shape == x.shape
        assert set(found.frozen) >= {"vae", "text_encoder"}
    assert configurations(str(models["sd"]))["unet"]["_class_name"] == "UNet2DConditionModel"
    with pytest.raises(InputError, match="no such model folder"):
        hollow(str(tmp_path / "nowhere"))


# --- every figure is that of the run's settings, against a run on the CPU


@pytest.fixture
def run(models: dict[str, Path], pairs: Path, tmp_path: Path) -> Run:
    return Run(
        str(models["sdxl"]), DPO(beta=10.0), policy=Full(), data=str(pairs), out=str(tmp_path / "run"), steps=3,
        batch=2, resolution=32, precision="bfloat16", attention="sdpa", evaluate=Evaluate(preview_every=0), keep=1,
        save_every=1, log_with="none", optimizer=AdamW(lr=1e-6),
    )  # fmt: skip


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass is counted: what lies there needs none."""
    monkeypatch.setattr(Pass, "step", lambda *_: Counter())
    monkeypatch.setattr(Pass, "forward", lambda *_: Counter())
    monkeypatch.setattr(Hollow, "costs", lambda *_: (0, 0))


def change(run: Run, **changes: Any) -> Run:
    return dataclasses.replace(run, **changes)


def told(run: Run) -> Needs:
    return needs(run, "h200", data_of(run))


def held(trainer: Trainer) -> dict[str, int]:
    """Bytes that lie there after a step, by the names of the prediction."""
    policy, states = trainer.policy, trainer.optimizer.state.values()
    frozen = [*(p for p in policy.denoiser.parameters() if not p.requires_grad), *policy.denoiser.buffers()]
    copies = [p for n, p in policy.parameters.items() if policy.masters[n] is not p]
    parts = {
        "frozen weights": frozen,
        "trained weights": policy.masters.values(),
        "their working copy": copies,
        "past selves": [t for tensors in policy.pasts() for t in tensors.values()],
        f"optimizer ({type(trainer.run.optimizer).__name__})": [
            v for s in states for v in s.values() if isinstance(v, torch.Tensor)
        ],
    }
    return {name: sum(t.nbytes for t in tensors) for name, tensors in parts.items()}


SETTINGS = {
    "full": {},
    "adafactor": {"optimizer": Adafactor(lr=1e-6)},
    "lora": {"policy": LoRA(rank=2)},
    "lora adafactor": {"policy": LoRA(rank=2), "optimizer": Adafactor()},
    "float8": {"policy": LoRA(rank=2, quantization="float8")},
    "nf4": {"policy": LoRA(rank=2, quantization="nf4")},
    "float32": {"precision": "float32"},
    "float64": {"precision": "float64", "policy": LoRA(rank=2), "reference": HardCopy()},
    "average": {"ema": 0.9},
    "moving reference": {"policy": LoRA(rank=2), "reference": EMA()},
    "no reference": {"objective": SFT()},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.usefixtures("uncounted")
def test_what_is_predicted_lies_there_after_a_step(run: Run, changes: dict[str, Any]) -> None:
    run = change(run, **changes)
    trainer, found = Trainer(run), told(run)
    next(iter(trainer))
    actual = held(trainer)
    assert {name: found.memory[name] for name in actual} == actual
    assert found.memory["gradients"] == actual["trained weights"]
    assert found.trained == sum(p.numel() for p in trainer.policy.parameters.values())


@pytest.mark.parametrize("kind", [AdamW8bit(), Prodigy()], ids=lambda k: type(k).__name__)
def test_what_optimizers_that_are_extras_remember(kind: Optimizer) -> None:
    package = pytest.importorskip({v: k for k, v in optimizers.EXTRAS.items()}[type(kind)])
    assert package
    held = {"a.lora_A": torch.nn.Parameter(torch.ones(64, 80)), "a.lora_B": torch.nn.Parameter(torch.zeros(80, 3))}
    made = optimizers.build(kind, held)
    for weight in held.values():
        weight.grad = torch.ones_like(weight)
    made.step()
    storages = {v.data_ptr(): v.nbytes for s in made.state.values() for v in s.values() if isinstance(v, torch.Tensor)}
    assert optimizers.kept(kind, held) == sum(storages.values())


def test_bytes_of_optimizers_by_hand() -> None:
    weights = {"matrix": torch.empty(64, 128), "lora_B": torch.empty(128, 2), "kernel": torch.empty(8, 4, 3, 3)}
    numbers = 64 * 128 + 256 + 288
    assert optimizers.kept(AdamW(), weights) == 8 * numbers + 3 * 4
    assert optimizers.kept(Adafactor(), weights) == 4 * (64 + 128 + 128 + 2 + 2 * 8 * 4 * 3) + 3 * 4
    assert optimizers.kept(AdamW8bit(), weights) == 2 * 64 * 128 + 8 * 32 + 8 * (256 + 288) + 2048
    assert optimizers.kept(Prodigy(), weights) == 16 * numbers - 4 * 256 + 4


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"optimizer": Adafactor(lr=1e-6)}, {"policy": LoRA(rank=2), "reference": EMA()}, {"ema": 0.9},
        {"pictures": Pictures(stored="float16", crops=2, flip=0.5)}, {"pictures": Pictures(posterior="sample")},
        {"bank": "on", "draws": 2}, {"keep": 5, "steps": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("uncounted")
def test_what_is_predicted_lies_on_the_disk(run: Run, changes: dict[str, Any]) -> None:
    run = change(run, **changes)
    train(run)
    found, out = told(run).disk, Path(run.out)
    folders = {"latents": "cache/latents-*", "embeddings": "cache/texts-*", "policy": "policy"}
    for name, pattern in folders.items():
        files = list(out.glob(f"{pattern}/**/*.safetensors"))
        assert files, name
        assert sum(map(_numbers, files)) == found[name], name
    checkpoints = list(out.glob("checkpoint-*"))
    saved = {sum(map(_numbers, c.glob("*.safetensors"))) for c in checkpoints}
    assert len(checkpoints) == min(run.keep, run.steps)
    assert saved == {found["checkpoints"] / min(run.keep + 1, run.steps)}, "one more while it is written"
    banks = [f.stat().st_size for f in out.glob("cache/reference-*/errors.*")]
    assert max(banks, default=0) <= found.get("reference errors", 0)
    assert bool(banks) == (run.bank == "on")


def _numbers(file: Path) -> int:
    """Bytes of a safetensors file behind its header."""
    data = file.read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


@pytest.mark.usefixtures("uncounted")
def test_a_filled_bank_needs_no_reference(run: Run) -> None:
    live, banked = told(run), told(change(run, bank="on", draws=2))
    copy = sum(p.nbytes for p in Trainer(run).policy.parameters.values())
    assert live.memory["past selves"] == copy == banked.bank.memory
    assert (live.bank, banked.memory["past selves"]) == (None, 0)
    assert (banked.bank.share, told(change(run, bank="on", draws=1, steps=24)).bank.share) == (1.0, 0.25)
    lora = told(change(run, bank="on", draws=2, policy=LoRA(rank=2)))
    assert (lora.bank.memory, lora.memory["past selves"]) == (0, 0), "adapters off"
    assert told(change(run, cache="shared")).bank
    assert not told(change(run, cache="shared", bank="off")).bank
    with pytest.raises(InputError, match="bank = on: the reference moves"):
        told(change(run, bank="on", reference=EMA()))


@pytest.mark.usefixtures("uncounted")
def test_what_is_cached_is_not_encoded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hollow, "costs", lambda *_: (1000, 1000))
    found = hollow(run.model).frozen
    encoders = sum(n for k, n in found.items() if k != "vae")
    first = told(run)
    assert first.before == 4 * found["vae"] + 4 * encoders + 2 * 1000
    assert told(change(run, policy=LoRA(rank=2))).before == 4 * found["vae"] + 2 * encoders + 2 * 1000
    cache(run)
    assert told(run).before == 0
    watched = told(change(run, evaluate=Evaluate(preview_every=1)))
    weights = ("frozen weights", "trained weights", "their working copy", "past selves", "autoencoder, for previews")
    assert watched.before == sum(watched.memory[n] for n in weights) + 4 * encoders
    assert watched.memory["autoencoder, for previews"] == 4 * found["vae"]


def passes(run: Run, micro: int = 2, chunk: int = 0, *, banked: bool = False) -> dict[str, float]:
    cut = Cut(run, 2, {}, Counter(), Counter(), 0, 0, 0, 0, 1.0, 1.0)
    return {n: v for n, v in cut.passes(micro, chunk, banked=banked).items() if v}


def test_passes_are_those_that_the_run_asks(run: Run) -> None:
    assert passes(run) == {"reference": 1}
    assert passes(run, banked=True) == {}
    assert passes(change(run, objective=SFT())) == {}
    assert passes(run, chunk=1) == {"reference": 1, "policy, before its chunks": 1}
    assert passes(run, chunk=4) == {"reference": 1}
    kto = change(run, objective=KTO())
    assert passes(kto, micro=2) == {"reference": 1}
    assert passes(kto, micro=1) == {"reference": 1, "statistics of the batch": 2}
    assert passes(kto, micro=1, banked=True) == {"statistics of the batch": 1}
    assert passes(change(kto, parity="micro"), micro=1) == {"reference": 1}
    nft = change(run, objective=Anchored(NFT(), weight=0.1))
    assert passes(nft) == {"reference": 1}, "the previous policy is the reference"
    assert passes(change(nft, old=EMA())) == {"reference": 1, "previous policy": 1}
    inverted = States(inversion=Inversion(steps=5, renoise=1, guidance=2.0))
    assert passes(change(run, states=inverted)) == {"reference": 1, "inversion, at most": 20}
    stops = HardCopy(every=8, until_divergence=0.1, probe=64)
    assert passes(change(run, reference=stops)) == {"reference": 1, "reference's divergence": 4}


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What checkpointing costs is not counted."""
    count = Pass.step
    monkeypatch.setattr(Pass, "step", lambda self, kept: count(self, kept) if kept == "off" else Counter())


@pytest.mark.usefixtures("once")
def test_operations_are_those_of_a_run(run: Run) -> None:
    """A step on the CPU in float32, under the counter, is what is predicted: policy, reference, chunks, bank."""
    plain = change(run, precision="float32", micro_batch=1)
    for changes in ({}, {"chunk": 1}, {"bank": "on"}, {"policy": LoRA(rank=2)}):
        asks = change(plain, **changes, out=f"{run.out}-{len(str(changes))}")
        trainer, found = Trainer(asks), told(asks)
        with counting.fused(), Counter() as counter:
            next(iter(trainer))
        expected = sum(found.flops.values()) + (found.bank.flops if found.bank else 0)
        assert counter.flops == asks.batch * expected, changes


@pytest.mark.usefixtures("once")
def test_activations_follow_the_chunk_and_the_card_the_precision(run: Run) -> None:
    asks = change(run, micro_batch=2, batch=2, precision="float32")
    found = told(asks)
    by = {(s.micro, s.chunk, s.checkpointing): s for s in found.settings}
    assert by[2, 0, "off"].activations == 4 * by[1, 1, "off"].activations
    assert by[1, 1, "off"].speed < by[1, 0, "off"].speed
    chunked = told(change(asks, chunk=1))
    assert asked(change(asks, chunk=1), chunked, 2**40).activations == by[1, 1, "off"].activations
    assert asked(asks, found, 2**40).checkpointing == "off"
    assert asked(asks, found, found.fixed).checkpointing == "full", "auto, where nothing is free"
    said = doctor(Consultation(change(asks, bank="on")))
    assert "reference" not in said.splitlines()[1]
    assert "A run that fills it itself asks the reference" in said


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("quantization", ["none", "float8", "nf4"])
def test_layers_in_few_bits_are_consulted(run: Run, quantization: str) -> None:
    asks = change(run, policy=LoRA(rank=2, quantization=quantization), precision="bfloat16")
    assert "suggested: --micro-batch" in doctor(Consultation(asks, "4090"))


@pytest.mark.usefixtures("uncounted")
def test_what_does_not_fit_says_what_would_need_less(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CARDS, "4090", CARDS["4090"]._replace(memory=1e-6))
    said = doctor(Consultation(run, "4090")).splitlines()[-1]
    assert "try a LoRA, optimizer=AdamW8bit(), --cache DIR" in said


def test_pictures_that_do_not_fit_the_memory_are_encoded_in_parts() -> None:
    seen: list[int] = []

    class Small:
        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            if len(pixels) > most:
                raise torch.OutOfMemoryError
            seen.append(len(pixels))
            return pixels * 2

    most, pixels = 5, torch.arange(17.0).view(17, 1, 1, 1)
    assert torch.equal(material._encoded(Small(), pixels, "mean")["latents"], pixels * 2)
    assert seen == [4, 4, 4, 5]
    most = 1
    with pytest.raises(InputError, match="size 1x1: 2 pictures do not fit"):
        material._encoded(Small(), pixels[:4], "mean")


def test_a_counter_counts() -> None:
    a, b = (torch.empty(4, 8, device="meta"), torch.empty(8, 16, device="meta"))
    seen = counting.counted(lambda: a @ b, a, b)
    assert (seen.flops, seen.kernels, seen.moved) == (2 * 4 * 8 * 16, 1, 4 * (32 + 128 + 64))
    assert seen.peak == 4 * 64
    assert seen.seconds(1.0, 1e9) == 2 * 4 * 8 * 16
    plain = torch.nn.functional.scaled_dot_product_attention
    q = torch.empty(1, 2, 64, 32, device="meta")
    held = counting.counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), q)
    assert held.flops == 4 * 2 * 64 * 64 * 32
    assert held.peak < 2 * 64 * 64 * 4, "no matrix of all pairs"
    assert torch.nn.functional.scaled_dot_product_attention is plain
