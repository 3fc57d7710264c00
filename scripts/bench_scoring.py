"""How long `diffalign score` takes against a loop over single images, as judges' repositories show it: same weights.

    python scripts/bench_scoring.py [--images 64] [--side 512] [--width 384] [--layers 12] [--batch 32]

A random CLIP in PickScore's layout judges random pictures, eight a prompt. The loop opens one picture, processes it,
tokenizes its prompt, and runs both towers in float32; both are timed after one picture that warms up. Printed are
seconds by the clock and of the processor (with one core, only the text tower's work is saved; with several, decoding
and resizing go beside it; on a GPU batches count). Also: the second run, and peak memory of twice the pictures.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from diffalign import folders, scoring
from diffalign.records import Image, Prompt, digest, prompt_id
from diffalign.scorers.checkpoints import device

PER_PROMPT = 8


def weights(place: Path, width: int, layers: int) -> Path:
    """A random CLIP of ViT-*/16 at 224 pixels, with CLIP's tokenizer and processor."""
    both = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    both |= {"num_attention_heads": width // 64}
    text = {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    config = CLIPConfig(text_config=both | text, vision_config=both | {"patch_size": 16}, projection_dim=width)
    CLIPModel(config).save_pretrained(place)
    shipped, ends = SimpleTokenizer(), {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(token, token): number for token, number in shipped.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=list(shipped.bpe_ranks), model_max_length=77).save_pretrained(place)
    CLIPImageProcessor().save_pretrained(place)
    return place


def pictures(place: Path, count: int, side: int) -> list[tuple[bytes, str]]:
    """A record folder of smooth random pictures; the files and their prompts."""
    rows, made = [], []
    for n in range(count):
        small = np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        sink = io.BytesIO()
        PIL.Image.fromarray(small).resize((side, side), PIL.Image.Resampling.BICUBIC).save(sink, format="PNG")
        text = f"a photo of the {n // PER_PROMPT}th thing, in soft light, highly detailed"
        known = {"bytes": sink.getvalue(), "path": None}
        rows.append(Image(digest("bench", n), prompt_id(text), known, digest(sink.getvalue()), side, side, index=n))
        made.append((sink.getvalue(), text))
    folders.begin(place, folders.Manifest("sample", {"count": count, "side": side}, 1))
    folders.write_part(place, "prompts", 0, [Prompt(prompt_id(t), t) for t in dict.fromkeys(t for _, t in made)])
    folders.write_part(place, "images", 0, rows)
    return made


def loop(place: Path, made: list[tuple[bytes, str]]) -> list[float]:
    """One picture after the other."""
    model = CLIPModel.from_pretrained(place).eval().to(device())
    processor, tokenizer = CLIPImageProcessor.from_pretrained(place), CLIPTokenizer.from_pretrained(place)
    found = []
    with torch.no_grad():
        for data, text in made:
            picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
            pixels = processor(images=picture, return_tensors="pt").to(device())
            words = tokenizer(text, padding=True, truncation=True, max_length=77, return_tensors="pt").to(device())
            found.append(float(model(**words, pixel_values=pixels["pixel_values"]).logits_per_image[0, 0]))
    return found


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds by the clock, of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def peak() -> float:
    """The most memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 64), ("side", 512), ("width", 384), ("layers", 12), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        clip = weights(place / "clip", given.width, given.layers)
        made = pictures(place / "images", given.images, given.side)
        pictures(place / "one", 1, given.side)
        pictures(place / "more", 2 * given.images, given.side)
        names, run = (f"pickscore={clip}",), scoring.score
        loop(clip, made[:1])
        run(place / "one", scorer=names, out=place / "warm", batch=given.batch)
        alone = timed(lambda: loop(clip, made))
        whole = timed(lambda: run(place / "images", scorer=names, out=place / "scores", batch=given.batch))
        again = timed(lambda: run(place / "images", scorer=names, out=place / "scores", batch=given.batch))
        before = peak()
        run(place / "more", scorer=names, out=place / "twice", batch=given.batch)
        print(f"{given.images} pictures of {given.side} pixels, {given.images // PER_PROMPT} prompts, on {device()}")
        for what, (clock, processor) in (("loop", alone), ("score", whole), ("score again", again)):
            print(f"{what:<12}{clock:>9.2f} s by the clock{processor:>9.2f} s of the processor")
        print(f"ratio       {alone[0] / whole[0]:>9.2f} by the clock  {alone[1] / whole[1]:>9.2f} of the processor")
        print(f"memory      {before:>9.0f} MiB, {peak():.0f} MiB after twice the pictures")


if __name__ == "__main__":
    main()
