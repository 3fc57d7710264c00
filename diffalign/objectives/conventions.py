"""One beta: what the numbers of papers and repositories are here."""

import math

# Whether a source halves the difference of errors, and whether its error is a mean or a sum over a latent's elements.
HALF_MEAN = frozenset(
    {
        "diffalign",
        "DiffusionDPO",
        "diffusers-sdxl",
        "InPO",
        "SmPO",
        "Diffusion-SDPO",
        "DSPO",
        "DSO",
        "Curriculum-DPO",
        "Diffusion-NPO-sdxl",
        "alpha-DPO",
        "flow_grpo",
        "verl-omni",
        "Flow-Factory",
    }
)
WHOLE_MEAN = frozenset(
    {
        "diffusers-sd15",
        "Diffusion-NPO-sd15",
        "PSO",
        "Diffusion-KTO",
        "RankDPO",
        "DGPO",
        "CRD",
    }
)
HALF_SUM = frozenset({"Diffusion-DPO-equation-46"})
WHOLE_SUM = frozenset({"Diffusion-DPO-pseudocode"})


def convert_beta(
    value: float, source: str, latent_shape: tuple[int, int, int] | None = None, target: str = "diffalign"
) -> float:
    """The beta of `target` that gives the same margin as `value` in `source`: here r = beta/2 (difference of means).

    latent_shape: (channels, height, width) of the latents, read where an error is a sum: there one beta means another
    at every resolution. Sources are repositories (with the base model where scripts differ) and papers. Raises
    ValueError on an unknown source and where a shape is needed and missing.
    """
    return value * _factor(source, latent_shape) / _factor(target, latent_shape)


def _factor(source: str, latent_shape: tuple[int, int, int] | None) -> float:
    known = HALF_MEAN | WHOLE_MEAN | HALF_SUM | WHOLE_SUM
    if source not in known:
        raise ValueError(f"beta of {source!r}: expected one of {', '.join(sorted(known))}")
    half = source in HALF_MEAN | HALF_SUM
    if source in HALF_MEAN | WHOLE_MEAN:
        elements = 1
    elif latent_shape is None:
        raise ValueError(f"beta of {source!r} multiplies a sum: expected latent_shape = (channels, height, width)")
    else:
        elements = math.prod(latent_shape)
    return (1 if half else 2) * elements
