"""The noise schedule of an original file: what it says, or what the user says, and never a guess."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError

BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# What is written in safetensors' metadata by the ModelSpec standard → its name in diffusers
MODELSPEC = {"epsilon": "epsilon", "v": "v_prediction"}
SCHEDULES = ("alphas_cumprod", "model.alphas_cumprod")  # where a file has its ᾱ
MARK, ZERO_SNR = "v_pred", "ztsnr"  # empty tensors that trainers of SDXL put beside the weights
BETA_START, BETA_END, SCHEDULE = 0.00085, 0.012, "scaled_linear"
STABLE: dict[str, object] = {
    "beta_end": BETA_END,
    "beta_schedule": SCHEDULE,
    "beta_start": BETA_START,
    "num_train_timesteps": 1000,
}
COMMON = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
XL = {"interpolation_type": "linear", "sample_max_value": 1.0, "timestep_spacing": "leading"}
# Lin et al. 2023: the first step is the noisiest there is
ENDS_IN_NOISE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TOLERANCE = 0.01  # of ᾱ, which files in half precision round


def prediction_of(file: TensorFile, family: str, given: str | None) -> str:
    """Return what the UNet predicts: as given, else as the file says, else as all files of SD 1 and XL do.

    Raise GencliError for SD 2, which has both kinds with the same keys.
    """
    if given is not None:
        return given
    if MARK in file.shapes:
        return "v_prediction"
    said = MODELSPEC.get(str(file.metadata.get("modelspec.prediction_type")))
    if said is None and family == "sd2":
        raise GencliError(
            "its keys do not say what a Stable Diffusion 2 predicts: --prediction is needed",
            "--prediction v_prediction for models of 768×768, --prediction epsilon for bases of 512×512 and inpainting",
        )
    return said or "epsilon"


def scheduler_config(
    file: TensorFile,
    family: str,
    prediction: str,
    betas: str | None,
    own: Sequence[float] | None = None,
    zero_snr: bool | None = None,
) -> dict[str, object]:
    """Return scheduler_config.json as the folder of this model has it. own: the file's own ᾱ, if it has them.
    zero_snr: what the user says of it; else the file's mark tells, or its own ᾱ.

    Raise GencliError if the file's own ᾱ are others, unless `betas` names the schedule.
    """
    names = {"sd1": "PNDMScheduler", "sd2": "DDIMScheduler", "sdxl": "EulerDiscreteScheduler"}
    xl = family in ("sdxl", "refiner")
    config: dict[str, object] = {
        "_class_name": names["sdxl" if xl else family],
        **STABLE,
        **COMMON,
        **(XL if xl else {}),
    }
    config |= {"prediction_type": prediction, "trained_betas": None}
    if betas is not None:
        config["beta_schedule"] = betas
    elif own is not None:
        wanted = {zero: alphas_cumprod(SCHEDULE, zero_snr=zero) for zero in (False, True)}
        fits = [zero for zero in wanted if _is_near(own, wanted[zero])]
        if not fits:
            raise GencliError(
                "its alphas_cumprod are not those of Stable Diffusion's noise schedule",
                f"--betas {'|'.join(BETAS)} says which to go by (scaled_linear is Stable Diffusion's), and --zero-snr "
                "whether it ends in noise alone",
            )
        zero_snr = fits[0] or ZERO_SNR in file.shapes if zero_snr is None else zero_snr
    if ZERO_SNR in file.shapes if zero_snr is None else zero_snr:
        config |= ENDS_IN_NOISE
    return config


def _is_near(own: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(own) == len(wanted) and max(abs(a - b) for a, b in zip(own, wanted, strict=True)) <= TOLERANCE


def alphas_cumprod(betas: str, *, zero_snr: bool = False, count: int = 1000) -> list[float]:
    """Return ᾱ of a schedule from Stable Diffusion's first β to its last. zero_snr: as Lin et al. 2023, algorithm 1."""
    start, end = BETA_START, BETA_END
    power = 0.5 if betas == "scaled_linear" else 1.0
    found, product = [], 1.0
    for i in range(count):
        beta = (start**power + (end**power - start**power) * i / (count - 1)) ** (1 / power)
        if betas == "squaredcos_cap_v2":
            beta = min(1 - _cosine((i + 1) / count) / _cosine(i / count), 0.999)
        product *= 1 - beta
        found.append(product)
    if zero_snr:
        first, last = math.sqrt(found[0]), math.sqrt(found[-1])
        found = [((math.sqrt(one) - last) * first / (first - last)) ** 2 for one in found]
    return found


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
