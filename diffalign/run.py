"""The configuration as data: a run is an expression of frozen dataclasses, strict in and strict out."""

import dataclasses
import math
from abc import ABC
from dataclasses import dataclass, field
from typing import Any, Literal, final

from diffalign.inversion import Inversion
from diffalign.objectives.base import Objective
from diffalign.optimizers import AdamW, Optimizer
from diffalign.times import TimeLaw, Uniform, Unweighted, Weighting
from diffalign.views import Pictures

Family = Literal["any", "sd", "sdxl", "sd3", "flux", "flux2-klein", "pixart", "sana", "qwen-image", "z-image"]


class Adaptation(ABC):  # noqa: B024
    """What of the denoiser is trained: an empty base, by which flags narrow to the recipe's own class."""


@final
@dataclass(frozen=True)
class LoRA(Adaptation):
    """Low-rank adapters, W + alpha/rank B A with B = 0 at the start; `targets` empty means the family's own.

    `dropout` zeroes each input of an adapter with that probability, in the policy's own pass only; its draws are named
    by the groups of a micro-batch, so that a run with dropout depends on `micro_batch`.
    `start` names an adapter (file, or folder of a run) of the same rank and targets to go on from: the previous
    round's, or one of supervised fine-tuning. The reference `Frozen()` is then the denoiser with that adapter.
    `quantization` keeps the frozen linear layers of the denoiser's blocks in 8 bits ("float8") or 4 ("nf4", QLoRA,
    arXiv 2305.14314), for large models on small cards; the reference is then that denoiser too. It is slower, and the
    adapter was trained on rounded weights: sample once with it on the model itself before relying on it.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    start: str = ""
    quantization: Literal["none", "float8", "nf4"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: expected a probability in [0, 1)")
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank = {self.rank}, alpha = {self.alpha}: expected positive numbers")


@final
@dataclass(frozen=True)
class Full(Adaptation):
    """All weights of the denoiser."""


class Reference(ABC):  # noqa: B024
    """Which past self of the policy it is compared with: an empty base, by which flags narrow to the recipe's class."""


@final
@dataclass(frozen=True)
class Frozen(Reference):
    """The policy as it was at step 0, or the adapter or weights at `path` (SPIN: the previous round's), for ever.

    With LoRA it costs nothing (adapters off), or a second copy of the adapter where `path` or `LoRA.start` is given;
    with full training, a second copy of the weights. `path` is an adapter or a run's folder, with full training a
    model's or a run's folder.
    """

    path: str = ""


@final
@dataclass(frozen=True)
class HardCopy(Reference):
    """The policy, copied every `every` steps; costs a second copy of what is trained.

    `until_divergence` > 0 stops the copying for good once D(reference, start) exceeds it: the mean error of the
    reference less that of the policy at step 0, over the winners of `probe` fixed groups at fixed times and noise
    (one more pass over these after each copy). Rethinking DPO, arXiv 2505.18736: every 16 to 64 steps, 0.005 (SD1.5)
    or 0.002 (SDXL); the estimate's normalisation is ours.
    """

    every: int = 32
    until_divergence: float = 0.0
    probe: int = 64

    def __post_init__(self) -> None:
        if self.every < 1 or self.probe < 1 or not 0 <= self.until_divergence < math.inf:
            raise ValueError(f"{self}: every and probe at least 1, until_divergence at least 0 (0: never)")


@final
@dataclass(frozen=True)
class EMA(Reference):
    """reference <- decay * reference + (1 - decay) * policy, every `every` steps; a second copy of what is trained.

    Of LoRA the factors A and B are averaged, not their product.
    """

    decay: float = 0.999
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.decay < 1:
            raise ValueError(f"{self}: every at least 1, decay in [0, 1)")


@final
@dataclass(frozen=True)
class Schedule:
    """Factor of the learning rate: linear warm-up over `warmup` steps, then constant, cosine or linear to 0."""

    shape: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup = {self.warmup}: expected at least 0")


@final
@dataclass(frozen=True)
class States:
    """Where noisy states come from, and what an error at each of them weighs.

    Attributes:
        times: Law of the one time that a group has.
        noise: Whether a group shares one noise or each image has its own.
        inversion: Reach x_t by DDIM inversion instead of noise; steps = 0 does not.
        weighting: What the time of a group weighs, lambda(t).
        weighs: "loss" multiplies each judgement's loss by lambda; "errors" multiplies the errors of policy and
            reference, and so any margin that is linear in them (Rethinking DPO has lambda inside the logit).
        prediction: Measure the error in another parametrisation than the network's.
        zero_terminal_snr: Shift the schedule so that its last step is pure noise (SDXL-Turbo).
    """

    times: TimeLaw = field(default_factory=Uniform)
    noise: Literal["shared", "independent"] = "shared"
    inversion: Inversion = field(default_factory=Inversion)
    weighting: Weighting = field(default_factory=Unweighted)
    weighs: Literal["loss", "errors"] = "loss"
    prediction: Literal["native", "epsilon", "v_prediction", "sample"] = "native"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.inversion.steps and self.noise != "shared":
            raise ValueError(f"noise = {self.noise}: an inverted state draws none; only inversion.noise adds some")


@final
@dataclass(frozen=True)
class Evaluate:
    """What is drawn while a run trains: the same prompts with the same noise again and again, beside the base.

    Nothing of it changes the policy, and all of it may be changed when a run is gone on with.

    Attributes:
        prompts: Text file with one prompt a line, or JSON lines with "text"; "" shows the first few of the data.
        scorers: Scorers of the win rate against the base, say pickscore or hpsv2.1; one of them should not have judged
            the training pairs.
        every: Steps between evaluations by the scorers; 0 means none.
        best: Scorer by whose win rate the best checkpoint is kept; "" means the first that did not judge the pairs.
        preview_every: Steps between previews (`previews/`), of which the first shows step 0; 0 means none, and so do
            runs that are shorter.
        previews: Prompts of a preview.
        noises: Pictures per prompt of an evaluation.
        steps: Denoising steps of the model's own scheduler.
        guidance: Guidance scale, as `sample` counts it.
        batch: Pictures per denoiser call and process.
        seed: Names the noise.
    """

    prompts: str = ""
    scorers: tuple[str, ...] = ()
    every: int = 0
    best: str = ""
    preview_every: int = 500
    previews: int = 4
    noises: int = 1
    steps: int = 30
    guidance: float = 5.0
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.every, self.preview_every) < 0 or min(self.previews, self.noises, self.steps, self.batch) < 1:
            raise ValueError(f"{self}: every and preview_every at least 0, the other numbers at least 1")
        if self.every and not (self.scorers and self.prompts):
            raise ValueError("evaluate.every: needs evaluate.scorers and evaluate.prompts, a file")


@final
@dataclass(frozen=True)
class Curriculum:
    """Groups by score gap, the widest (easiest) first: one of `stages` equal parts more every `every` steps.

    One stage is no curriculum. Curriculum-DPO, arXiv 2405.13637: 6 stages of 500 steps, easiest by the gap of rewards.
    """

    stages: int = 1
    every: int = 500

    def __post_init__(self) -> None:
        if self.stages < 1 or self.every < 1:
            raise ValueError(f"{self}: expected numbers of at least 1")


@final
@dataclass(frozen=True)
class Run:
    """One training run. Everything that decides its result is here; `out` says where it goes and does not.

    Attributes:
        model: Model folder in diffusers' layout, a hub id, or a single .safetensors file (with `config`).
        objective: How to align.
        config: Folder in diffusers' layout, or hub id, that says what a single file is.
        family: What the recipe's numbers are for; a model of another family is refused until it is named here. "any"
            asks nothing.
        init_lora: Adapter (file, or folder of a run) that is put into the base's weights first, so that policy and
            reference both have it: that of supervised fine-tuning, say. The policy is exported together with it.
        policy: What is trained: LoRA or Full.
        reference: What the policy is compared with: Frozen, HardCopy or EMA. Not made for objectives without reference.
        old: The previous policy, for objectives that compare with one too (NFT, DGPO, CRD): Frozen, HardCopy or EMA.
        states: Where noisy states come from.
        data: Record folder of judgements (what `pair` writes).
        labels: "swapped" reads every judgement the other way round (for the model of a negative branch, NPO).
        captions: "own" shows an image under its own caption where it has one, else under its prompt (DCPO).
        curriculum: Order of the data by score gap.
        out: Run folder to write.
        push: Hub id "owner/name" that the policy's folder is uploaded to when it is done; none unless given.
        bank: Whether the frozen reference's errors are kept in the cache, so that they are computed once: "auto" where
            the objective reads no more than them and it pays (with `cache`, with `draws`, or after the verb `cache`);
            "on" refuses what cannot.
        draws: How many draws of time and noise a group has before they come again; 0 means a new one at every visit.
        seed: Names every random stream of the run.
        steps: Optimizer steps.
        batch: Groups per optimizer step, over all processes.
        micro_batch: Groups per forward pass; 0 means the whole batch of a process.
        chunk: Images per backward pass where a micro-batch (one long ranking, say) does not fit; 0 means all. Exact, at
            the price of one more forward pass.
        parity: Over what statistics that couple a batch are taken: the optimizer batch, or each micro-batch of each
            process ("micro"), as the papers' code has it.
        resolution: Height and width of the training pictures in pixels.
        pictures: How pictures become latents: shape, crops, mirroring.
        cache: Folder of latents and embeddings, which runs of the same model share; by default one in `out`.
        optimizer: AdamW, AdamW8bit, Adafactor or Prodigy, with gradient clipping.
        schedule: Learning-rate schedule.
        ema: Decay of an average of what is trained, which is then what is exported; 0 exports the last step. Costs a
            second copy of what is trained.
        precision: "auto" is float32 on the CPU and bfloat16 on an accelerator; run.json holds the resolved value.
            "bfloat16": weights in bfloat16, what is trained in float32 beside them; for every card since 2020.
            "float16": weights in float32, products in float16 with a loss scale; for older cards. "float32": twice
            the memory and more than twice the time; to rule rounding out. "float64": for comparisons.
        attention: Kernel of scaled dot products: "auto" and "sdpa" leave it to torch; "cudnn", "flash" and "xformers"
            are refused where they would not take effect.
        gradient_checkpointing: What is computed again in the backward pass instead of kept: nothing ("off"), all but
            convolutions and attention ("selective"), the blocks ("full"); "auto" goes by the memory that is free. It
            does not change the result.
        compile: Compile the blocks that the denoiser repeats: slow at first, faster after, equal up to rounding.
        caption_dropout: Probability that a group is shown the unconditional embedding instead of its prompt.
        log_every: Steps between lines of metrics.jsonl.
        save_every: Steps between checkpoints; the last step always has one.
        keep: Checkpoints kept, beside the best one where `evaluate` says which that is.
        evaluate: What is drawn and scored while the run trains.
        log_with: Where numbers and previews go beside `metrics.jsonl`; all but tensorboard need their own package.
    """

    model: str
    objective: Objective
    config: str = ""
    family: Family = "any"
    init_lora: str = ""
    policy: Adaptation = field(default_factory=LoRA)
    reference: Reference = field(default_factory=Frozen)
    old: Reference = field(default_factory=Frozen)
    states: States = field(default_factory=States)
    data: str = ""
    labels: Literal["as_given", "swapped"] = "as_given"
    captions: Literal["prompt", "own"] = "prompt"
    curriculum: Curriculum = field(default_factory=Curriculum)
    out: str = ""
    push: str = ""
    bank: Literal["auto", "on", "off"] = "auto"
    draws: int = 0
    seed: int = 0
    steps: int = 1000
    batch: int = 16
    micro_batch: int = 0
    chunk: int = 0
    parity: Literal["batch", "micro"] = "batch"
    resolution: int = 512
    pictures: Pictures = field(default_factory=Pictures)
    cache: str = ""
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Schedule)
    ema: float = 0.0
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    attention: Literal["auto", "sdpa", "cudnn", "flash", "xformers"] = "auto"
    gradient_checkpointing: Literal["auto", "off", "selective", "full"] = "auto"
    compile: bool = False
    caption_dropout: float = 0.0
    log_every: int = 10
    save_every: int = 100
    keep: int = 2
    evaluate: Evaluate = field(default_factory=Evaluate)
    log_with: Literal["tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "trackio", "none"] = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "resolution", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        for name in ("draws", "chunk"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema = {self.ema}: expected a decay in [0, 1)")
        if self.micro_batch < 0 or not 0 <= self.caption_dropout < 1:
            raise ValueError(
                f"micro_batch = {self.micro_batch}, caption_dropout = {self.caption_dropout}: out of range"
            )
        if self.reference != Frozen():
            self.objective.check_reference(True)
        name = type(self.objective).__name__
        if self.old != Frozen() and not self.objective.needs_old:
            raise ValueError(f"{name} compares with no previous policy, but old = {self.old} was asked for")
        if isinstance(self.old, HardCopy) and self.old.until_divergence:
            raise ValueError("old.until_divergence: only the reference stops by its divergence")


def to_data(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON; a dataclass becomes its class path and its fields."""
    if dataclasses.is_dataclass(value):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"class": name} | {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_data(v) for v in value]
    return value
