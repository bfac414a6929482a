"""Noise levels of a pipeline's scheduler, whatever its class: x_t = alpha_t x_0 + sigma_t eps."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast, get_args

from torch import Tensor

from npnet_training.errors import ModelError, SettingsError

PredictionType = Literal["epsilon", "v_prediction", "flow_prediction"]
Solver = Literal["ddim", "dpm++"]


class Prediction(NamedTuple):
    """What the denoiser says of latents x_t = alpha_t x_0 + sigma_t eps; float32, (B, C, H, W) both."""

    clean: Tensor
    noise: Tensor


class Level(NamedTuple):
    """How much signal and noise there is at a timestep."""

    alpha: float
    sigma: float


class NoiseSchedule:
    """Timesteps and noise levels, from the configuration of a scheduler of diffusers.

    Variance-preserving schedules are read through their cumulative alphas, so that a scheduler of another
    parametrisation (Euler's sigmas) gives the same levels. A flow has alpha = 1 - sigma and timesteps
    sigma * T.

    Args:
        scheduler: of a pipeline; not changed.

    Raises:
        ModelError: its noise levels or what its network predicts are unknown.
    """

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDIMScheduler

        config = scheduler.config
        self._config = config
        self._spaced: dict[tuple[int, Solver], Tensor] = {}
        self._flow_euler = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        predicted = "flow_prediction" if self._flow_euler else config.get("prediction_type")
        if predicted not in get_args(PredictionType):
            raise ModelError(
                f"scheduler: expected one whose network predicts {', '.join(get_args(PredictionType))}, "
                f"given {type(scheduler).__name__} with prediction_type {predicted!r}, which cannot be "
                "inverted; collect with --no-targets and train with --loss reward"
            )
        if not self._flow_euler and "beta_schedule" not in config:
            raise ModelError(
                f"scheduler: expected one with a beta_schedule, or FlowMatchEulerDiscreteScheduler, given "
                f"{type(scheduler).__name__}; set pipe.scheduler to the DDIMScheduler of this model"
            )
        self.prediction_type = cast(PredictionType, predicted)
        self.train_timesteps = int(config["num_train_timesteps"])
        self.is_flow = predicted == "flow_prediction"
        if not self.is_flow:
            ddim = DDIMScheduler.from_config(config)
            self._alphas_cumprod = ddim.alphas_cumprod.double()
            self._final = float(ddim.final_alpha_cumprod)

    @property
    def final(self) -> Level:
        """Where sampling ends."""
        return Level(1.0, 0.0) if self.is_flow else _level(self._final)

    def level(self, timestep: float) -> Level:
        """Alpha and sigma of a timestep; below the first one, those of the end of sampling."""
        if self.is_flow:
            sigma = timestep / self.train_timesteps
            return Level(1 - sigma, sigma)
        if timestep < 0:
            return self.final
        return _level(float(self._alphas_cumprod[int(timestep)]))

    @property
    def set_by_pipeline(self) -> bool:
        """Whether the timesteps are those of the pipeline's call: of a flow, by its sigmas and its size."""
        return self._flow_euler

    def check_steps(self, steps: int) -> None:
        """Check a number of steps.

        Raises:
            SettingsError: more than the model was trained with, or none.
        """
        if not 1 <= steps <= self.train_timesteps:
            raise SettingsError(f"steps: expected 1 to {self.train_timesteps} for this model, given {steps}")

    def split(self, latents: Tensor, timestep: float, output: Tensor) -> Prediction:
        """Clean latents and noise of the network's output.

        Args:
            latents: x_t, (B, C, H, W) float32.
            timestep: t.
            output: of the network, likewise.
        """
        alpha, sigma = self.level(timestep)
        if self.prediction_type == "epsilon":
            return Prediction((latents - sigma * output) / alpha, output)
        if self.prediction_type == "v_prediction":
            return Prediction(alpha * latents - sigma * output, alpha * output + sigma * latents)
        # d x_t / d sigma, with alpha = 1 - sigma
        return Prediction(latents - sigma * output, latents + alpha * output)

    def timesteps(self, steps: int, solver: Solver = "ddim") -> Tensor:
        """(steps,) timesteps from the noisiest, as DDIM or DPM-Solver++ space them for this model.

        int64, or float32 of a flow, whose schedule is the same for both solvers. Not for schedules that are
        `set_by_pipeline`.

        Raises:
            SettingsError: more steps than the model was trained with.
        """
        self.check_steps(steps)
        if (
            steps,
            solver,
        ) not in self._spaced:  # every batch asks for them
            self._spaced[steps, solver] = self._timesteps(steps, solver)
        return self._spaced[steps, solver].clone()

    def _timesteps(self, steps: int, solver: Solver) -> Tensor:
        from diffusers import DDIMScheduler

        if self.is_flow:
            return self._dpm(steps).sigmas[:-1] * self.train_timesteps
        if solver == "dpm++":
            return self._dpm(steps).timesteps
        ddim = DDIMScheduler.from_config(self._config)
        ddim.set_timesteps(steps)
        return ddim.timesteps

    def published(self, steps: int, solver: Solver) -> tuple[Level, Level, Level]:
        """Levels that the published code steps to, inverts from, and inverts to.

        It calls `scheduler.step(eps, timesteps[0], x)`, then `inverse.step(eps, timesteps[1], x)`.
        DDIMInverseScheduler takes that timestep for the one to go to, DPMSolverMultistepInverseScheduler
        for the one to come from.

        Raises:
            SettingsError: a flow, which the published code does not know.
        """
        if self.is_flow:
            raise SettingsError(
                "convention: published is defined for epsilon and v prediction, given a flow; use consistent"
            )
        timesteps = self.timesteps(steps, solver)
        first, second = int(timesteps[0]), int(timesteps[1])
        if solver == "ddim":
            stride = self.train_timesteps // steps
            return self.level(first - stride), self.level(second - stride), self.level(second)
        from diffusers import DPMSolverMultistepInverseScheduler

        inverse = DPMSolverMultistepInverseScheduler.from_config(self._config, **DPM)
        inverse.set_timesteps(steps)
        found = (inverse.timesteps == second).nonzero()
        # as its `_init_step_index`: a timestep it does not have stands for the last
        index = int(found[0]) if len(found) else len(inverse.timesteps) - 1
        return (
            _of_ratio(self._dpm(steps).sigmas[1]),
            _of_ratio(inverse.sigmas[index]),
            _of_ratio(inverse.sigmas[index + 1]),
        )

    def _dpm(self, steps: int) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        flow = {"use_flow_sigmas": True} if self.is_flow else {}
        scheduler = DPMSolverMultistepScheduler.from_config(self._config, **DPM, **flow)
        scheduler.set_timesteps(steps)
        return scheduler


DPM = {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False, "final_sigmas_type": "zero"}


def _level(alpha_cumprod: float) -> Level:
    return Level(math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod))


def _of_ratio(sigma: Tensor) -> Level:
    """From DPM-Solver's sigma / alpha."""
    alpha = 1 / math.sqrt(1 + float(sigma) ** 2)
    return Level(alpha, alpha * float(sigma))
