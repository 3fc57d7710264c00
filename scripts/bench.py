"""Numbers of the machine that it runs on, not of any test: python scripts/bench.py [imports] [loading] …

    counters    exact counts of a training step on the meta device (`bench_counters.py`)
    ratios      what the caches save and the library costs, beside other scripts' steps (`bench_ratios.py`)

What needs an accelerator (pairs a second, share of its matmul rate, peak memory) is `bench_device.py`, a command of its
own that has not been run on one yet.

Each line gives what was measured, and the bound that it is held against. Processor seconds, not the clock's, where a
busy machine would be measured instead.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_counters
import bench_ratios
import numpy as np
import PIL.Image
import torch
from bench_counters import GIB
from bench_counters import SDXL_UNET as SDXL
from torch import nn

# not getrusage's figure, which a process takes over from the one that started it
LOAD = """
import sys
from diffalign import backbones
import diffusers, transformers
from diffusers import StableDiffusionXLPipeline
def peak():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
backbones.load(sys.argv[1], config=sys.argv[2])
print("RSS", before, peak())
"""


def line(what: str, found: float, bound: float, unit: str) -> None:
    print(f"{what:<46} {found:8.3f} {unit:<4} (bound {bound:g} {unit}){'' if found <= bound else '  OVER'}", flush=True)


def processor_seconds(*command: str) -> float:
    """User and system time of a command that ends well, the least of three."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def imports() -> None:
    """How long a user waits before anything happens."""
    bare = processor_seconds("-c", "pass")
    line("import diffalign", processor_seconds("-c", "import diffalign") - bare, 0.2, "s")
    line("diffalign --help", processor_seconds("-m", "diffalign", "--help"), 1, "s")
    words = ("train", "shapes_dpo", "--help")
    line(f"diffalign {' '.join(words)}", processor_seconds("-m", "diffalign", *words), 6, "s")


def loading() -> None:
    """Peak memory of loading an SDXL-shaped folder and a FLUX-shaped single file, denoisers of about 1 GiB both."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import diffusers
    import tiny

    from diffalign.backbones import mmdit_file

    pipe, sizes = tiny.sdxl(), {"block_out_channels": (96, 192, 512), "attention_head_dim": (2, 4, 8)}
    changed = sizes | {"transformer_layers_per_block": (1, 2, 7), "cross_attention_dim": 80, "norm_num_groups": 32}
    unet = diffusers.UNet2DConditionModel(
        **SDXL | changed | {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}
    )
    pipe.register_modules(unet=unet)
    with tempfile.TemporaryDirectory() as place:
        pipe.save_pretrained(place)
        del pipe, unet
        _loaded("folder", sum(p.stat().st_size for p in Path(place, "unet").glob("*.safetensors")), place, "")
    pipe, sizes = tiny.flux(), {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 12}
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, **sizes
    )
    pipe.register_modules(transformer=transformer)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "model.safetensors")
        mmdit_file.write(pipe, file)
        pipe.register_modules(transformer=None)
        pipe.save_pretrained(place)
        transformer.save_config(Path(place, "transformer"))
        index = Path(place, "model_index.json")
        named = json.loads(index.read_text()) | {"transformer": ["diffusers", "FluxTransformer2DModel"]}
        index.write_text(json.dumps(named))
        del pipe, transformer
        _loaded("single file", file.stat().st_size, str(file), place)


def _loaded(what: str, size: int, model: str, config: str) -> None:
    out = subprocess.run([sys.executable, "-c", LOAD, model, config], check=True, capture_output=True, text=True).stdout
    before, peak = (int(kib) * 1024 / GIB for kib in out.split("RSS")[1].split())
    print(f"{what} of {size / GIB:.3f} GiB, process before loading {before:.3f} GiB")
    line("peak resident memory after loading", peak, 1.15 * size / GIB + 1, "GiB")


def again() -> None:
    """`score` over 10,000 images that are scored already, in a record folder and in a folder of pictures."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import worlds

    from diffalign import folders
    from diffalign.readers import seen
    from diffalign.records import Image, Prompt, digest, prompt_id

    prompt, picture = Prompt(prompt_id("x"), "x"), {"bytes": worlds.png(0), "path": None}
    rows = [Image(digest("i", n), prompt.id, picture, digest("file", n), 32, 32, index=n) for n in range(10_000)]
    with tempfile.TemporaryDirectory() as folder:
        place, own = Path(folder, "images"), Path(folder, "one.py")
        folders.begin(place, folders.Manifest("sample", {}, 1))
        folders.write_part(place, "prompts", 0, [prompt])
        folders.write_part(place, "images", 0, rows)
        own.write_text("def f(images, prompts):\n    return [1.0] * len(images)\n")
        plain = Path(folder, "pictures")
        plain.mkdir()
        for n in range(10_000):
            small = PIL.Image.fromarray(np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((32, 32)).save(plain / f"{n:05d}.png")
        rows = [f"{n:05d}.png,prompt {n // 8}\n" for n in range(10_000)]
        (plain / "metadata.csv").write_text("file_name,prompt\n" + "".join(rows))
        time.sleep(2 * seen.MARGIN / 1e9)  # what was written just before is not remembered
        for what, images in (("rows there", place), ("pictures known", plain)):
            out = Path(folder, f"scores of {images.name}")
            words = ("-m", "diffalign", "score", str(images), "--scorer", f"{own}:f", "--out", str(out))
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            line(f"diffalign score, all 10,000 {what}", processor_seconds(*words), 2, "s")


def toggle() -> None:
    """Turning the adapters of SDXL off and on again around a reference pass, without weights."""
    import diffusers

    from diffalign.backbones import SDXL as Family
    from diffalign.policy import Policy
    from diffalign.run import Frozen, LoRA

    class Bare:
        """A backbone of which a policy needs no more than this."""

        targets, idle, part = Family.targets, (), "unet"
        denoiser: nn.Module

    bare = Bare()
    with torch.device("meta"):
        bare.denoiser = diffusers.UNet2DConditionModel(**SDXL)
    policy = Policy(bare, LoRA(rank=1), 0, reference=Frozen())
    modules = sum(1 for _ in bare.denoiser.modules())
    found = []
    for _ in range(50):
        start = time.process_time()
        with policy.past("reference", bare.denoiser):
            pass
        found.append(1000 * (time.process_time() - start))
    print(f"{modules} modules, {len(policy.parameters) // 2} adapters")
    line("adapters off and on again, median of 50", sorted(found)[25], 2, "ms")


if __name__ == "__main__":
    torch.set_num_threads(1)
    known = {
        "imports": imports,
        "loading": loading,
        "toggle": toggle,
        "again": again,
        "counters": lambda: bench_counters.table(list(bench_counters.MODELS)),
        "ratios": lambda: bench_ratios.main(),
    }
    for name in sys.argv[1:] or ("imports", "loading", "toggle", "again"):
        known[name]()
