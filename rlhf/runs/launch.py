"""Is this process started in a way that rlhf can work with? Refuses launchers that would give wrong or rival runs."""

from __future__ import annotations

import os

from rlhf.errors import SetupError

UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def refuse_unsupported_launchers() -> None:
    """Raises SetupError under a launcher that wraps the model in a way that rlhf does not handle yet."""
    for variable, name in UNSUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise SetupError(
                f"accelerate launch is set to {name}, which rlhf does not support yet: checkpoints and final/ would be "
                "incomplete; use accelerate_configs/single.yaml or accelerate_configs/ddp.yaml"
            )


def refuse_rival_processes(joined: int) -> None:
    """Raises SetupError where the launcher started more processes than the `joined` ones that work together.

    Such processes do not know of each other, and each would write the same folder as if it were alone.
    """
    started = int(os.environ.get("WORLD_SIZE") or "1")
    if started != joined:
        raise SetupError(
            f"the launcher started {started} processes (WORLD_SIZE), but {joined} work together: the others would be "
            "rival runs in the same output_dir; on CPUs set ACCELERATE_USE_CPU=true before accelerate launch, on GPUs "
            "start one process for each GPU"
        )


def refuse_several_processes(method: str) -> None:
    """Raises SetupError where a method that runs in one process was started in several."""
    started = int(os.environ.get("WORLD_SIZE") or "1")
    if started > 1:
        raise SetupError(
            f"method: {method} runs in one process, and the launcher started {started}, which would all do the same "
            "work and write the same folder; run it without accelerate launch"
        )
