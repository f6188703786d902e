"""Names from other trainers (Hugging Face's TrainingArguments, TRL, axolotl, LLaMA-Factory) and what they are called here.

Under `explain`. `SAME` holds names whose value means the same here: name -> our key. `SAID` holds names whose value must
be converted, or which have no counterpart: name -> what to do, as a sentence.
"""

from __future__ import annotations

SAME = {
    # short names
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "scheduler": "training.lr_scheduler_type",
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "model_name": "model.name_or_path",
    # TrainingArguments and TRL
    "model_name_or_path": "model.name_or_path",
    "per_device_batch_size": "training.per_device_train_batch_size",
    "dataset_path": "data.train",
    "dataset_train_split": "data.train.0.split",
    "dataset_test_split": "data.eval.0.split",
    "torch_dtype": "model.dtype",
    "lora_r": "lora.r",
    "lora_target_modules": "lora.target_modules",
    "max_seq_length": "data.max_length",
    "kl_coefficient": "ppo.kl_coef",
    "init_kl_coef": "ppo.kl_coef",
    "num_ppo_epochs": "ppo.num_ppo_epochs",
    "response_length": "ppo.sampling.max_new_tokens",
    "whiten_rewards": "ppo.whiten_rewards",
    "reward_model_path": "ppo.rewards.0.model",
    "ref_model": "dpo.reference",
    "ref_model_name_or_path": "dpo.reference",
    "precompute_ref_log_probs": "dpo.cache_reference",
    "resume_from_checkpoint": "checkpoint.resume",
    # axolotl
    "base_model": "model.name_or_path",
    "datasets": "data.train",
    "test_datasets": "data.eval",
    "sequence_len": "data.max_length",
    "micro_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "num_epochs": "training.num_train_epochs",
    "lr_scheduler": "training.lr_scheduler_type",
    "optimizer": "training.optim",
    "rl_beta": "dpo.beta",
    "auto_resume_from_checkpoints": "checkpoint.resume",
    # LLaMA-Factory
    "dataset": "data.train",
    "eval_dataset": "data.eval",
    "cutoff_len": "data.max_length",
    "lora_rank": "lora.r",
    "lora_target": "lora.target_modules",
    "pref_beta": "dpo.beta",
    "pref_loss": "dpo.loss_type",
    "reward_model": "ppo.rewards.0.model",
}

_FOUR_BITS = "add a section quantization: {load_in_4bit: true}, with lora:"
_LORA = "add a section lora: to train adapters, or leave it out to train every weight"
_CHAT = "write data.template.kind: chat to use the tokenizer's chat template"
_METHOD = "the method is chosen by method: sft, reward, ppo or dpo"
_LAUNCH = "processes are started by accelerate launch --config_file accelerate_configs/ddp.yaml; take the key out"
_SAVED = (
    "a run saves every ten minutes, or by checkpoint.save_steps: a number of steps; final/ is always written at the end"
)
_UNSUPPORTED = "is not supported; take the key out"

SAID = {
    "warmup_ratio": "write training.warmup_steps: the ratio times the number of steps, as a whole number",
    "fp16": "16-bit floats of the fp16 kind are not supported; write training.bf16: true where the GPU can, or take it out",
    "tf32": f"tf32 {_UNSUPPORTED}",
    "load_in_8bit": "8-bit models are not supported; for 4 bits write quantization: {load_in_4bit: true}, with lora:",
    "quantization_bit": _FOUR_BITS,
    "quantization_method": _FOUR_BITS,
    "use_peft": _LORA,
    "adapter": _LORA,
    "finetuning_type": _LORA,
    "stage": _METHOD,
    "rl": _METHOD,
    "do_train": "the command decides: rlhf train, rlhf eval or rlhf generate; take the key out",
    "do_eval": "evaluation during training: write data.eval and training.eval_steps; take the key out",
    "eval_strategy": "write training.eval_steps: a number of steps, or null for none",
    "evaluation_strategy": "write training.eval_steps: a number of steps, or null for none",
    "val_set_size": "split the rows first with a data recipe (steps: [split: {test: 0.05}]), then write data.eval",
    "save_strategy": _SAVED,
    "saves_per_epoch": _SAVED,
    "evals_per_epoch": "write training.eval_steps: a number of steps",
    "logging_dir": "logs go to output_dir; take the key out",
    "overwrite_output_dir": "write checkpoint.resume: never to start afresh",
    "chat_template": _CHAT,
    "packing": "rows are always packed without padding, and never see each other; take the key out",
    "sample_packing": "rows are always packed without padding, and never see each other; take the key out",
    "pad_to_sequence_len": "rows are never padded to a fixed length; take the key out",
    "train_on_inputs": "write sft.loss_on: all for true, completion for false",
    "completion_only_loss": "write sft.loss_on: completion for true, all for false",
    "assistant_only_loss": "only the last answer of a row is trained (sft.loss_on: completion); take the key out",
    "group_by_length": f"group_by_length {_UNSUPPORTED}; rows are packed, so no padding is saved by it",
    "max_prompt_length": "data.max_length holds prompt and completion together; there is no limit for the prompt alone",
    "max_completion_length": "data.max_length holds prompt and completion together; there is no limit for the completion alone",
    "loss_weights": "write dpo.losses: each loss with its weight, as in {sigmoid: 1.0, sft: 0.2}",
    "rpo_alpha": "write dpo.losses: {sigmoid: 1.0, sft: the value}",
    "cpo_alpha": "write dpo.losses: {cpo: 1.0, sft: the value}, with simpo in place of cpo where loss_type was simpo",
    "deepspeed": f"DeepSpeed {_UNSUPPORTED}; {_LAUNCH}",
    "fsdp": f"FSDP {_UNSUPPORTED}; {_LAUNCH}",
    "fsdp_config": f"FSDP {_UNSUPPORTED}; {_LAUNCH}",
    "ddp_timeout": _LAUNCH,
    "flash_attention": "the attention is chosen by the machine; take the key out",
    "flash_attn": "the attention is chosen by the machine; take the key out",
    "attn_implementation": "the attention is chosen by the machine; take the key out",
    "trust_remote_code": "code from a model's folder is never run; take the key out",
    "push_to_hub": "runs are not uploaded; take the key out, and upload final/ with the hf command",
    "hub_model_id": "runs are not uploaded; take the key out, and upload final/ with the hf command",
    "run_name": "a run is known by its output_dir; take the key out",
    "wandb_project": "write logging.report_to: [wandb]; the project's name comes from the variable WANDB_PROJECT",
    "use_wandb": "write logging.report_to: [wandb]",
    "dataset_name": "write data.train: a file, a folder or a hub name",
    "dataset_dir": "write the whole path in data.train",
    "dataset_prepared_path": "tokens are kept in the cache by themselves (rlhf data cache); take the key out",
    "preprocessing_num_workers": "tokenising needs no workers; take the key out",
    "dataloader_num_workers": "rows are read from disk without workers; take the key out",
}
