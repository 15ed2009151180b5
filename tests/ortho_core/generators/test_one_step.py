"""The one step of every scheduler of the installed diffusers: its numbers against its own step, or the reason why it has none."""

import inspect
import json
import re
import shutil

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, SchedulerMixin

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.recipe import started

#: Schedulers that take one deterministic step as they are.
LINEAR = {
    "CogVideoXDDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
#: The others, with a part of the reason.
REFUSED = {
    "BlockRefinementScheduler": "cannot take one step: too many values to unpack",
    "CMStochasticIterativeScheduler": "not a fixed linear map",
    "CogVideoXDPMScheduler": "cannot take one step: .* missing 2 required positional arguments",
    "DDIMInverseScheduler": "a stochastic or clipping scheduler",
    "DDIMParallelScheduler": "a stochastic or clipping scheduler",
    "DDIMScheduler": "a stochastic or clipping scheduler",
    "DDPMParallelScheduler": "a stochastic or clipping scheduler",
    "DDPMScheduler": "a stochastic or clipping scheduler",
    "DDPMWuerstchenScheduler": "cannot take one step: invalid index of a 0-dim tensor",
    "DiscreteDDIMScheduler": r"leaves out the network's output \(its weight is 0\)",
    "EntropyBoundScheduler": r"leaves out the network's output \(its weight is 0\)",
    "HeliosDMDScheduler": "cannot take one step: KeyError",
    "HeliosScheduler": "cannot take one step: KeyError",
    "IPNDMScheduler": r"leaves out the network's output \(its weight is 0\)",
    "KarrasVeScheduler": "cannot take one step: .* missing 1 required positional argument",
    "MiniMaxH3Scheduler": "cannot take one step: .*num_inference_steps",
    "PNDMScheduler": "cannot take one step: operands could not be broadcast",
    "PiflowScheduler": "cannot take one step: Piflow model output channels",
    "RePaintScheduler": "cannot take one step: .* missing 2 required positional arguments",
    "ScoreSdeVeScheduler": "cannot take one step: .* has no attribute 'step'",
    "UnCLIPScheduler": "cannot take one step: division by zero",
}
#: Schedulers of tokens and structures, which cannot be made without their sizes.
OF_OTHER_MODELS = {"AmusedScheduler", "RFD4ProteinaScheduler", "VQDiffusionScheduler"}


def schedulers():
    """The scheduler classes whose packages are installed."""
    found = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    return {kind.__name__: kind for kind in found if inspect.isclass(kind) and issubclass(kind, SchedulerMixin)}


def test_every_scheduler_is_one_that_takes_a_step_or_is_refused():
    assert schedulers().keys() == LINEAR | REFUSED.keys() | OF_OTHER_MODELS


# Two of them use NumPy in a way that NumPy 2 will end.
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(LINEAR))
def test_the_numbers_make_the_step_that_the_scheduler_itself_makes(name):
    kind = schedulers()[name]
    step = OneStep.of(kind())
    drawn = torch.Generator().manual_seed(0)
    noise, output = (torch.randn(2, 4, 6, 6, generator=drawn) for _ in range(2))
    scheduler = started(kind(), None)
    t = scheduler.timesteps[0]
    assert float(t) == step.timestep
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
    torch.testing.assert_close(step.input_scale * noise, scaled, rtol=1e-4, atol=1e-5)
    made = scheduler.step(output, t, x, return_dict=False)[0]
    ours = step.noise_weight * noise + step.output_weight * output
    torch.testing.assert_close(ours, made, rtol=1e-4, atol=1e-4 * float(made.abs().max()))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused_in_one_line_with_name_and_reason(name):
    with pytest.raises(UserError) as told:
        OneStep.of(schedulers()[name]())
    said = str(told.value)
    assert name in said
    assert "\n" not in said
    assert re.search(REFUSED[name], said), said


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_flow_model_s_step_is_noise_minus_output_whatever_the_shift(shift):
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"):
        step = OneStep.of(schedulers()[name](shift=shift))
        assert (step.input_scale, step.noise_weight, step.output_weight) == pytest.approx((1, 1, -1), abs=2e-5)
        assert step.timestep == pytest.approx(1000)


def test_a_timestep_that_a_scheduler_does_not_know_is_refused_with_it():
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler cannot take one step at timestep 500: "):
        OneStep.of(schedulers()["FlowMatchEulerDiscreteScheduler"](use_dynamic_shifting=True), 500)
    trailing = EulerDiscreteScheduler(timestep_spacing="trailing")
    assert OneStep.of(trailing).timestep == 999


def test_a_scheduler_whose_package_is_missing_is_told_in_one_line(tiny_turbo, tmp_path):
    if "DPMSolverSDEScheduler" in schedulers():
        pytest.skip("torchsde is installed")
    folder = tmp_path / "model"
    shutil.copytree(tiny_turbo, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DPMSolverSDEScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as told:
        load_generator(folder)
    assert "\n" not in str(told.value)
    assert "torchsde" in str(told.value)
