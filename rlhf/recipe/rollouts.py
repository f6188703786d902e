"""`rollouts:` of the methods that sample: which engine of vLLM draws the completions, in the place of the module that trains.

Either engine is kept in step by adapter: after each iteration the policy's LoRA adapter is written and loaded again, and never a
weight of the base. So these recipes need `lora:`. Without the section the module that trains draws its own completions.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlhf.recipe.sections import NonNegativeInt, PositiveFloat, PositiveInt, QuantizationSection, Section
from rlhf.recipe.synthesis import an_address


class ImportanceSamplingSection(Section):
    """The policy's loss of a token is multiplied by min(p / q, `cap`), p by the module that trains and q by the engine.

    It takes out the bias of an engine that rounds otherwise. A cap under 1 would scale every token down.
    """

    cap: Annotated[float, Field(ge=1)] = 2.0


class RolloutsSection(Section):
    """What both engines have. After each sampling the engine's log-probabilities are compared with those of the module that trains.

    A mean difference of more than `max_gap` nats a token stops the run: the engine then samples from another policy.
    """

    max_gap: PositiveFloat = 0.1
    importance_sampling: ImportanceSamplingSection | None = None


class VllmRollouts(RolloutsSection):
    """vLLM in this process, one engine for each process on its own device. Its base and precision are the policy's.

    `gpu_memory_utilization` is vLLM's share of the device's memory; training takes what is left. With `sleep` vLLM gives its
    memory back while the policy trains, and takes it again to sample.
    """

    engine: Literal["vllm"]
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    sleep: bool = False
    enforce_eager: bool = False


class VllmServerRollouts(RolloutsSection):
    """A server of vLLM's that you have started with the policy's base, on this machine or one with the same files.

    `timeout` is seconds for one prompt's completions; a request is tried 1 + `max_retries` times, waiting longer each time.
    """

    engine: Literal["vllm_server"]
    base_url: str
    api_key_env: str | None = None
    concurrency: PositiveInt = 64
    timeout: PositiveFloat = 600.0
    max_retries: NonNegativeInt = 5

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return an_address(value)


AnyRollouts = Annotated[VllmRollouts | VllmServerRollouts, Field(discriminator="engine")]


def problem_with_quantization(rollouts: AnyRollouts, quantization: QuantizationSection | None) -> str | None:
    """Why vLLM in process cannot load the base in the 4 bits that the policy trains on, or None."""
    if quantization is None or not quantization.load_in_4bit or isinstance(rollouts, VllmServerRollouts):
        return None
    if quantization.bnb_4bit_quant_type == "nf4" and quantization.bnb_4bit_use_double_quant:
        return None
    return (
        "vLLM quantises to nf4 with double quantisation only, and the base is loaded in another way, so the engine would "
        "sample from another model; set quantization.bnb_4bit_quant_type: nf4 and bnb_4bit_use_double_quant: true"
    )
