"""HPSv3: Qwen2-VL with a head at one token, of a score and of how sure it is, trained on HPDv3."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from diffalign.decoding import flat
from diffalign.scorers.base import Answers, Scorer
from diffalign.scorers.checkpoints import device, file_in, files_of, fit_all, locate, read, revision, split
from diffalign.scorers.networks import Differentiable

if TYPE_CHECKING:
    import torch
    from torch import nn

OFFICIAL, BASE, FILE = "MizzenAI/HPSv3", "Qwen/Qwen2-VL-7B-Instruct", "HPSv3.safetensors"
_BASE = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer*.json")
PIXELS = 256 * 28 * 28
# layouts of transformers before 4.52 and since; the language model's own head is not used
_RENAMES = ((r"^model\.visual\.", "visual."), (r"^model\.(?:language_model\.)?", "language_model."))
_WORDS = (Path(__file__).parent / "prompts" / "hpsv3.txt").read_text(encoding="utf-8")


def hpsv3(place: str) -> Scorer:
    """The mean of the head's Gaussian, unbounded, at the reward token behind image, instruction and prompt.

    `place` is "FILE" or "FILE,BASE": the official HPSv3.safetensors, its folder or a hub id, and a folder or hub id
    with configuration, tokenizer and image processor of Qwen2-VL-7B-Instruct (default: the hub cache); BASE's weights
    are not read. The authors run it with `--precision bfloat16`. P(first is better) = E sigmoid(z), z ~ N(difference,
    σ₁² + σ₂²), which the authors draw in training and is integrated here; σ is what `function` gives beside the score.
    Source: Ma et al. 2025 (HPSv3), section 4; its instruction is part of the model's input.
    """
    file, base = split(place, 2)
    path = file_in(locate(file, OFFICIAL, (FILE,)), FILE)
    folder = locate(base, BASE, _BASE)
    return Scorer(
        "hpsv3", revision(path, *files_of(folder, _BASE)), f"PIL bicubic to {PIXELS} pixels",
        lambda: Hpsv3(path, folder), lambda _: 1.0, towers=True, deviates=True,
    )  # fmt: skip


class Hpsv3(Differentiable):
    """The loaded scorer: a Qwen2-VL without its language head, and the head of two numbers, μ and log σ."""

    def __init__(self, path: Path, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

        config = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
        state = _renamed(read(path))
        embedded = state.get("language_model.embed_tokens.weight")
        if embedded is not None:
            config.text_config.vocab_size = len(embedded)
        self.model, self.head = Qwen2VLModel(config), _head(config.text_config.hidden_size)
        fit_all({"": self.model, "rm_head.": self.head}, state, path)
        self.model, self.head = self.model.to(device()), self.head.to(device())
        self.words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.pictures = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        self.image = config.image_token_id
        # the authors add one token behind those of the tokenizer
        self.reward = len(self.words)
        self.factor = config.vision_config.patch_size * config.vision_config.spatial_merge_size

    def cast(self, dtype: "torch.dtype") -> None:
        """Compute the towers in `dtype`; the head stays in float32."""
        self.model.to(dtype)

    def __call__(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> Answers:
        """Scores, float32, (images,), and their deviations."""
        import torch

        with torch.no_grad():
            mean, log_deviation = self._judged(*self._patches(images), prompts).cpu().unbind(-1)
        return Answers(mean.numpy(), (None,) * len(images), deviations=log_deviation.double().exp().numpy())

    def differentiable(self, pixels: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """See `Differentiable`."""
        import torch

        from diffalign.scorers.pixels import patched, rounded, straight

        exact, grid = self._patches([rounded(x) for x in pixels])
        width, height = sides(pixels.shape[3], pixels.shape[2], self.factor)
        smooth = [patched(x, height, width, self.pictures) for x in pixels]
        return self._judged(straight(exact, torch.cat(smooth)), grid, prompts)[:, 0]

    def _patches(self, images: Sequence[PIL.Image.Image]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """(rows of all patches of the pictures, their grids)."""
        sized = [flat(image).resize(sides(*image.size, self.factor), _BICUBIC) for image in images]
        found = self.pictures(sized, do_resize=False, return_tensors="pt")
        return found["pixel_values"], found["image_grid_thw"]

    def _judged(self, patches: "torch.Tensor", grid: "torch.Tensor", prompts: Sequence[str]) -> "torch.Tensor":
        """(μ, log σ) of each image, (images, 2), float32 or that of the head."""
        import torch

        patches, grid = patches.to(self.model.device, self.model.dtype), grid.to(self.model.device)
        counts = (grid.prod(-1) // self.model.config.vision_config.spatial_merge_size**2).tolist()
        rows = [torch.tensor(self.tokens(p, n)) for p, n in zip(prompts, counts, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.words.pad_token_id)
        ids = ids.to(self.model.device)
        length = torch.tensor([len(row) for row in rows], device=ids.device)
        # the authors' forward never sees the tokens' kinds, so all three axes count them one by one
        position = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.model(
            input_ids=ids, attention_mask=(position[0] < length[:, None]).long(), position_ids=position,
            pixel_values=patches, image_grid_thw=grid, use_cache=False,
        ).last_hidden_state  # fmt: skip
        return self.head(hidden[ids == self.reward].to(self.head[0].weight.dtype))

    def tokens(self, prompt: str, patches: int) -> list[int]:
        """The conversation as ids: special tokens where they belong, the prompt as plain text whatever it says."""
        before, after = _WORDS.replace("{prompt}", prompt).rsplit("<|Reward|>", 1)
        opened = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        head, seen, tail = (
            self.words.encode(text, add_special_tokens=False)
            for text in (opened, "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n")
        )
        said = [self.words(text, add_special_tokens=False, split_special_tokens=True) for text in (before, after)]
        before_ids, after_ids = (found["input_ids"] for found in said)
        return [*head, *[self.image] * patches, *seen, *before_ids, self.reward, *after_ids, *tail]


_BICUBIC = PIL.Image.Resampling.BICUBIC


def sides(width: int, height: int, factor: int) -> tuple[int, int]:
    """(width, height) as multiples of `factor` with about PIXELS pixels, never more where it was more before."""
    near = [max(1, round(length / factor)) for length in (width, height)]
    scale = math.sqrt(width * height / PIXELS)
    if near[0] * near[1] * factor**2 > PIXELS:
        near = [max(1, math.floor(length / scale / factor)) for length in (width, height)]
    elif near[0] * near[1] * factor**2 < PIXELS:
        near = [math.ceil(length / scale / factor) for length in (width, height)]
    return near[0] * factor, near[1] * factor


def _renamed(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """The tensors that are used, those of Qwen2VLModel by today's names."""
    found = {}
    for name, tensor in state.items():
        for before, after in _RENAMES:
            name, changed = re.subn(before, after, name)
            if changed:
                break
        if not name.startswith("lm_head."):
            found[name] = tensor
    return found


def _head(width: int) -> "nn.Module":
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
