"""The samplers of SD 1 and SDXL by the names that their users know, as diffusers' schedulers. Knows no request.

The names are those of Automatic1111's program; which scheduler is which is a table in diffusers' documentation
("Schedulers", overview). Some of them are near relatives: its `DPM++ SDE` is a single-step solver without noise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import diffusers

from limner.core.errors import BadArgument

_KARRAS = {"use_karras_sigmas": True}  # noise levels of Karras et al., 2022
_SDE = {"algorithm_type": "sde-dpmsolver++"}

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", {}),
    "DPM++ SDE Karras": ("DPMSolverSinglestepScheduler", _KARRAS),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 Karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", _KARRAS),
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
"""Name -> scheduler's class, and its options beside the model's own configuration."""

MOST_STEPS = {"LCM": 50}
"""Samplers that take some of so many steps, those that models were distilled from."""

# What a model's configuration says for the scheduler that it was published with, not for others.
_OF_ANOTHER = {
    "_class_name",
    "_diffusers_version",
    "algorithm_type",
    "original_inference_steps",
    "solver_order",
    "use_karras_sigmas",
}

# As the published configurations have it, where one lacks it: some schedulers' own defaults are for pixels.
_OF_LATENTS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


class Samplers:
    """Samplers(config).scheduler("Euler a")    # `config` is the model's: its noise schedule and what it predicts"""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {key: value for key, value in config.items() if key not in _OF_ANOTHER}
        self._unused: dict[str, Any] = {}  # some take half a second to make, and none to copy

    def scheduler(self, name: str) -> Any:
        """Return a new scheduler: it holds the state of one picture. Raises BadArgument for a name that isn't in
        SAMPLERS."""
        if name not in SAMPLERS:
            raise BadArgument(_unknown(name), field="options.sampler")
        if name not in self._unused:
            class_name, options = SAMPLERS[name]
            self._unused[name] = getattr(diffusers, class_name).from_config(_OF_LATENTS | self._config | options)
        return copy.deepcopy(self._unused[name])


def _unknown(name: str) -> str:
    folded = {each.casefold(): each for each in SAMPLERS}
    near = get_close_matches(name.casefold(), folded, n=1)
    meant = f"; did you mean {folded[near[0]]!r}?" if near else ";"
    return f"no sampler {name!r} for this model{meant} There are: {', '.join(SAMPLERS)}"
