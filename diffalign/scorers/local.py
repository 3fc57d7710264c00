"""Any vision-language model of transformers in this process, asked as a server is asked."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from diffalign import decoding
from diffalign.records import InputError
from diffalign.scorers.base import Spent
from diffalign.scorers.checkpoints import device, folder_of, locate, open_pretrained
from diffalign.scorers.plain import apart, normaliser, pattern
from diffalign.scorers.server import Reply, Silence

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor, BatchFeature

# what such a model's folder on the hub is made of, without remote code and duplicates of weights
FILES = ("*.json", "*.jinja", "*.txt", "model*.safetensors", "*.model")


def place_of(model: str) -> Path:
    """The folder of a model, or of the hub id that was named; raises InputError where there is none."""
    return folder_of(locate(model, model, FILES))


@dataclass(frozen=True)
class _Asked:
    """One request as the processor takes it: the rendered conversation and its pictures."""

    text: str
    images: list[PIL.Image.Image]


class Local:
    """A model and its processor; answers are greedy, each the same whatever is asked beside it.

    Raises InputError for folders that hold none. Texts of requests cannot be special tokens: a space is put into them.
    """

    def __init__(self, folder: Path, precision: str = "float32", batch: int = 8) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        self.model = open_pretrained(AutoModelForImageTextToText, folder).to(device(), dtype)
        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True, padding_side="left")
        except Exception as error:  # configurations of others fail in many ways
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: AutoProcessor cannot load it ({type(error).__name__}: {line})") from None
        if not self.processor.chat_template:
            raise InputError(f"{folder}: has no chat template, so it cannot be asked")
        self.folder, self.words, self.batch = folder, self.processor.tokenizer, batch
        self.special, self.normalise = pattern(self.words.get_added_vocab()), normaliser(self.words)

    def cast(self, dtype: "torch.dtype") -> None:
        """Compute the model in `dtype`."""
        self.model.to(dtype)

    def ask(self, bodies: Sequence[dict]) -> list[Reply | Silence]:
        """The replies to request bodies as `Server.ask` takes them, in their order."""
        found: list[Reply | Silence] = []
        for start in range(0, len(bodies), self.batch):
            found += self._replies(bodies[start : start + self.batch])
        return found

    def first(self, bodies: Sequence[dict]) -> "torch.Tensor":
        """log P of every token as the first of the answer, float32, (bodies, vocabulary)."""
        import torch

        parts = [self._generated(bodies[i : i + self.batch], 1)[1] for i in range(0, len(bodies), self.batch)]
        return torch.cat(parts).log_softmax(-1)

    def first_through(self, bodies: Sequence[dict], pixels: "torch.Tensor") -> "torch.Tensor":
        """As `first`, with the gradient of pixels (bodies, 3, height, width) in [0, 1], of which each body holds one,
        rounded to 8 bits, as its only picture. One body is asked at a time, so that no padding shifts its positions.

        Raises InputError for models whose image processor is not Qwen2-VL's, resizing bicubically.
        """
        import torch

        from diffalign.scorers.pixels import patched, straight
        from diffalign.scorers.towers import wide

        how, found = self._followed(), []
        for body, x in zip(bodies, pixels, strict=True):
            given = self._given([body])
            height, width = (given["image_grid_thw"][0, 1:] * how.patch_size).tolist()
            smooth = patched(x, height, width, how)
            given["pixel_values"] = straight(given["pixel_values"], smooth.to(given["pixel_values"]))
            found.append(wide(self.model(**given, use_cache=False).logits[0, -1]))
        return torch.stack(found).log_softmax(-1)

    def _followed(self) -> "BaseImageProcessor":
        """The image processor; raises InputError where what it does to a picture is not known to be Qwen2-VL's."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        how = self.processor.image_processor
        # a subclass may do anything
        if type(how) not in (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil):
            name = type(how).__name__
            raise InputError(
                f"{self.folder}: its image processor {name} has no gradient here, Qwen2VLImageProcessor has"
            )
        if how.resample != PIL.Image.Resampling.BICUBIC or not (how.do_resize and how.do_rescale and how.do_normalize):
            raise InputError(
                f"{self.folder}: its image processor does not resize as Qwen2-VL's, so it has no gradient here"
            )
        return how

    def _replies(self, bodies: Sequence[dict]) -> list[Reply | Silence]:
        most = max(body["max_tokens"] for body in bodies)
        ids, logits, asked = self._generated(bodies, most)
        ends = {self.words.eos_token_id, *_listed(self.model.generation_config.eos_token_id)}
        found: list[Reply | Silence] = []
        for n, body in enumerate(bodies):
            said = ids[n, : body["max_tokens"]].tolist()
            count = next((i for i, token in enumerate(said) if token in ends), len(said))
            text = self.words.decode(said[:count], skip_special_tokens=True)
            top = None
            if body.get("logprobs"):
                best = logits[n].log_softmax(-1).topk(min(body.get("top_logprobs", 1), logits.shape[1]))
                listed = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                top = tuple((self.words.decode([token]), value) for token, value in listed)
            finish = "stop" if count < len(said) else "length"
            spent = Spent(requests=1, prompt_tokens=asked[n], completion_tokens=min(count + 1, len(said)))
            found.append(Reply(text, top, finish, "", spent))
        return found

    def _generated(self, bodies: Sequence[dict], most: int) -> tuple["torch.Tensor", "torch.Tensor", list[int]]:
        """(tokens of the answers (bodies, most), logits of their first, lengths of what was asked)."""
        import torch

        given = self._given(bodies)
        with torch.no_grad():
            found = self.model.generate(
                **given, max_new_tokens=most, do_sample=False, num_beams=1, return_dict_in_generate=True,
                output_logits=True, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
            )  # fmt: skip
        start = given["input_ids"].shape[1]
        return found.sequences[:, start:], found.logits[0].float(), given["attention_mask"].sum(1).tolist()

    def _given(self, bodies: Sequence[dict]) -> "BatchFeature":
        """What the model is given, on its device and in its precision."""
        asked = [self._rendered(body["messages"]) for body in bodies]
        pictures = [one.images for one in asked] if any(one.images for one in asked) else None
        given = self.processor(
            text=[one.text for one in asked], images=pictures, padding=True, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        return given

    def _rendered(self, messages: Sequence[dict]) -> _Asked:
        images, turns = [], []
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            turns.append({"role": message["role"], "content": [self._part(part, images) for part in parts]})
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return _Asked(text, images)

    def _part(self, part: dict, images: list[PIL.Image.Image]) -> dict:
        if part["type"] == "text":
            return {"type": "text", "text": apart(part["text"], self.special, self.normalise)}
        data = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
        images.append(decoding.rgb(data))
        return {"type": "image"}


def _listed(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
