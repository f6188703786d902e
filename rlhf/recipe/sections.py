"""The sections that recipes share: model, data, training, generation, rewards.

Each is a frozen, strict pydantic model: an unknown key, a string where a number belongs, or a value out of range is an
error, never a silent default. Leaf names are Hugging Face's own. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Precision = Literal["float32", "bfloat16"]
PrecisionOrAuto = Literal["auto", "float32", "bfloat16"]

Format = Literal[
    "kochatgpt_sft",
    "kochatgpt_rm",
    "kochatgpt_ppo",
    "kochatgpt_chat",
    "stack_exchange_paired",
    "stack_exchange_dump",
    "squad",
    "alpaca",
    "sharegpt",
    "messages",
    "hh",
    "hh_turns",
    "oasst",
    "ultrafeedback",
    "annotators",
    "scored",
    "preference",
    "ranking",
    "demonstration",
    "unpaired",
    "prompt",
]


class Section(BaseModel):
    """Base of every recipe section: strict, frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StoredModelSection(Section):
    """A model that is run as it is: a local folder, a hub name, or `embedded:NAME` (see rlhf/embedded).

    Without `dtype` it is loaded in the dtype that it was trained in (a `final/`) or that its config.json names: 16 bits of
    either kind as bfloat16, anything else as float32. `auto` is bfloat16 where the processor has instructions for it.
    """

    name_or_path: str
    dtype: PrecisionOrAuto | None = None
    batching: Literal["auto", "segments", "padded"] = "auto"


class ModelSection(StoredModelSection):
    """A pretrained model to train: a local folder, a hub name, or `embedded:NAME` (see rlhf/embedded).

    `dtype: auto` is bfloat16 where the processor has instructions for it, else float32.
    """

    dtype: PrecisionOrAuto = "float32"


class QuantizationSection(Section):
    """4-bit loading through bitsandbytes (QLoRA)."""

    load_in_4bit: bool = True
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"


class LoraSection(Section):
    """Low-rank adapters on the frozen base (peft).

    Where `model` is a LoRA run, `start: continue` goes on training a copy of its adapters, and `fresh` trains new ones on top
    of them. `r`, `lora_alpha` and `target_modules` that are left out are those of the adapters that go on, else 8, 16 and
    all-linear.
    """

    r: PositiveInt | None = None
    lora_alpha: PositiveInt | None = None
    lora_dropout: Fraction = 0.0
    target_modules: str | list[str] | None = None
    start: Literal["continue", "fresh"] = "continue"


class SourceSection(Section):
    """Rows to read: a file, a glob, a parquet folder, a hub name or `embedded:NAME`, with its format and columns.

    `columns` maps canonical names to the file's; `template` is the shape of a prompt that is put together from columns, and
    `template_no_input` the shape for rows whose `input` is empty (format alpaca); `group` is the file's column whose equal values stay together in dedup
    and split; `where` takes only the rows whose column holds one of the values (a list, or a text file of one a line);
    `weight` 0.5 takes a seeded half of the rows, 2 each row twice. What these leave out is counted.
    """

    path: str
    format: Format | None = None
    config: str | None = None
    split: str | None = None
    columns: dict[str, str] | None = None
    template: str | None = None
    template_no_input: str | None = None
    group: str | None = None
    where: dict[str, list[str | int] | str] | None = None
    weight: PositiveFloat = 1.0
    max_rows: PositiveInt | None = None


def _as_sources(value: Any) -> Any:
    """`data.train=rows.jsonl` and `data.train={path: rows.jsonl}` both mean a list of one source."""
    if isinstance(value, str):
        return [{"path": value}]
    if isinstance(value, dict):
        return [value]
    return value


Sources = Annotated[list[SourceSection], BeforeValidator(_as_sources)]


class TemplateSection(Section):
    """How a prompt becomes text.

    `kind: chat` puts the prompt through the tokenizer's chat template as one user message; `plain` uses it as it is; `auto` is `chat`
    where the rows are messages and `plain` where they are text. `prompt` is filled first, e.g. "Question: {prompt}\\n\\nAnswer: ".
    `train_on` says which assistant turns of a conversation train: the last, all, or those that are marked (`train: true` or `weight: 1`;
    a turn without a mark trains). Of a pair, these are turns after the messages that both sides share.
    """

    kind: Literal["auto", "plain", "chat"] = "auto"
    prompt: str = "{prompt}"
    add_eos: bool = True
    train_on: Literal["last", "all", "marked"] = "last"

    @model_validator(mode="after")
    def _has_placeholder(self) -> TemplateSection:
        if "{prompt}" not in self.prompt:
            raise ValueError("prompt: must contain {prompt}")
        return self


class DataSection(Section):
    """The rows of a training stage and how they become tokens."""

    train: Sources = Field(min_length=1)
    eval: Sources = []
    template: TemplateSection = TemplateSection()
    max_length: PositiveInt = 1024
    on_overflow: Literal["error", "drop", "truncate"] = "error"


class TrainingSection(Section):
    """The optimisation. A batch row is one segment: a prompt with all of its completions.

    `bf16` computes in bfloat16 and keeps what trains in float32; `auto` does so where the processor has instructions for it.
    """

    max_steps: PositiveInt | None = None
    num_train_epochs: PositiveFloat = 1.0
    per_device_train_batch_size: PositiveInt = 8
    max_tokens_per_batch: PositiveInt | None = None
    per_device_eval_batch_size: PositiveInt = 16
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-5
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    max_grad_norm: PositiveFloat | None = 1.0
    bf16: Literal[True, False, "auto"] = False
    gradient_checkpointing: bool = False
    eval_steps: PositiveInt | None = None


class CheckpointSection(Section):
    """When to save, how many to keep, where to go on, and in which dtype a full fine-tune's `final/` is stored.

    `save_steps: N` saves after every N steps and after the last; without it, a run saves after the first step that ends
    `save_minutes` or more after the last save (or the start), and then after its last step too. A run that is shorter
    than that leaves `final/` and no checkpoint. `save_minutes: null` without `save_steps` saves nothing. `resume`: auto |
    never | a checkpoint folder. `final_dtype` is `model.dtype` if it is left out; what storing in bfloat16 loses is measured
    and said. Adapters are always float32.
    """

    save_steps: PositiveInt | None = None
    save_minutes: PositiveFloat | None = 10.0
    save_total_limit: PositiveInt | None = 2
    resume: str = "auto"
    final_dtype: Precision | None = None


class LoggingSection(Section):
    """metrics.jsonl is always written; `report_to` adds Accelerate's trackers."""

    logging_steps: PositiveInt = 1
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []


class SamplingSection(Section):
    """How completions are sampled. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off."""

    max_new_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: PositiveInt = 1
    stop: list[str] = []
    batch_size: PositiveInt = 64


class Recipe(Section):
    """What every recipe has: where it writes, and its seed; and what carries it out."""

    entry_point: ClassVar[str]  # `module:function` that takes the recipe and returns a summary
    command: ClassVar[tuple[str, ...]]  # the words after `rlhf` that run it

    output_dir: str
    seed: NonNegativeInt = 0
