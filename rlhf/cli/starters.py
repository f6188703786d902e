"""`rlhf init METHOD`: a recipe to start from, with a comment at what one mostly changes. Every starter is a whole recipe."""

from __future__ import annotations

HEAD = """# Find mistakes: rlhf check FILE. Run it: {command} FILE. Every key: rlhf docs recipes
method: {method}
output_dir: outputs/{method}  # what the run writes
seed: 0
"""
MODEL = """model:
  name_or_path: embedded:smollm2-135m-instruct  # a folder, the folder of an earlier run, or a hub name
"""
LORA = """lora: {r: 16, lora_alpha: 32}  # train adapters; leave it out to train every weight
"""
ROWS = """data:
  train: [{{path: {path}}}]  # {rows}; all formats: rlhf docs formats
  max_length: 512  # tokens of prompt and completion together
  on_overflow: {overflow}
training:
  num_train_epochs: 1  # or max_steps
  per_device_train_batch_size: 8
  learning_rate: {rate}
checkpoint: {{save_minutes: 10}}  # after a break, run the same command again
"""
ERROR = "error  # a longer row stops the run; or drop, or truncate"
PAIRS = "prompt, chosen, rejected"
PREFERENCES = "preferences.jsonl"  # a file that the user has to name
FILMS = "embedded:film-reviews"


KL = "kl_coef: 0.05  # a larger one stays nearer to the model it starts from"


def _online(method: str, n: int = 1, near: str = KL) -> str:
    """The starter of a method that samples `n` completions of each prompt; `near`: what holds it to its reference."""
    sampling = "max_new_tokens: 64" + (f", n: {n}" if n > 1 else "")
    overflow = "drop  # a prompt with no room for an answer; or error"
    return (
        MODEL
        + LORA
        + ROWS.format(path=FILMS, rows="prompt", overflow=overflow, rate="1.0e-5")
        + f"""{method}:
  rollout_batch_size: 64  # prompts of one iteration
  sampling: {{{sampling}}}
  rewards: [{{callable: "./reward.py:score"}}]  # score(prompts, completions) gives a number each; others: rlhf docs rewards
  {near}
"""
    )


BODIES = {
    "sft": MODEL + LORA + ROWS.format(path=FILMS, rows="prompt, completion", overflow=ERROR, rate="2.0e-4"),
    "reward": MODEL + LORA + ROWS.format(path=PREFERENCES, rows=PAIRS, overflow=ERROR, rate="1.0e-4"),
    "dpo": MODEL
    + LORA
    + ROWS.format(path=PREFERENCES, rows=PAIRS, overflow=ERROR, rate="5.0e-5")
    + "dpo: {beta: 0.1, loss_type: sigmoid}  # a larger beta stays nearer to the model it starts from\n",
    "ppo": _online("ppo"),
    "rloo": _online("rloo", 4),
    "grpo": _online("grpo", 8),
    "reinforce_pp": _online("reinforce_pp"),
    "online_dpo": _online("online_dpo", 2, "beta: 0.1  # a larger one stays nearer to the model it starts from"),
    "data": """sources: [{path: rankings.jsonl}]  # all formats: rlhf docs formats
steps:  # in this order
  - pairs: {strategy: all}
  - dedup: {column: prompt, threshold: 0.8}
  - split: {test: 0.05, by: prompt}
""",
    "generate": MODEL
    + """prompts: [{path: embedded:film-reviews, split: test, max_rows: 16}]
sampling: {n: 4, max_new_tokens: 64, temperature: 1.0}
scorers: [{callable: "./reward.py:score"}]  # score(prompts, completions) gives a number each; others: rlhf docs rewards
""",
    "eval": """models:  # the first is the one that the others are compared with
  - {name: base, name_or_path: embedded:smollm2-135m-instruct}
  - {name: trained, name_or_path: outputs/dpo}
prompts: [{path: embedded:film-reviews, split: test, max_rows: 100}]
sampling: {max_new_tokens: 64}
scorers: [{callable: "./reward.py:score"}]  # score(prompts, completions) gives a number each; others: rlhf docs rewards
""",
}


def starter(method: str, command: tuple[str, ...]) -> str:
    """The recipe as YAML; `command` is what runs it."""
    return HEAD.format(method=method, command=" ".join(("rlhf", *command))) + BODIES[method]
