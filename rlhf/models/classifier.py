"""A whole reward model as transformers' own classifier with one label, so that other tools load body and head together.

`head.safetensors` stays what rlhf reads. Beside it, the body's file holds the head's weight once more, as `score.weight`, and
config.json names the classifier. Two things differ from a `ScalarModel`, and `how_to_score` says them of a folder:

- transformers reads the score at the last token that is not the pad token. Where that token also ends texts (pad is EOS), it
  would read the token before. So the folder pads with a token that ends no text, or, without such a token, with none at all:
  transformers then scores single rows, and refuses a batch.
- its head has no bias. Bradley-Terry leaves ours next to 0; it is `score_bias` in config.json, to be added.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rlhf.tokens.segments import Segment

if TYPE_CHECKING:
    from rlhf.models.scalar import ScalarModel

SUFFIX = "ForSequenceClassification"


def save_classifier(
    module: ScalarModel,
    body: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype,
) -> bool:
    """Write `body`, the whole network's weights, the head and the tokenizer as one classifier.

    False, with nothing written, where transformers has no classifier with one plain head for this network.
    """
    config = copy.deepcopy(module.transformer.config)
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if kind is None:
        return False
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    text = config.get_text_config()
    own = padding_apart(tokenizer, text.vocab_size)
    text.pad_token_id = None if own.pad_token == own.eos_token else own.pad_token_id
    config.num_labels = 1
    config.problem_type = "regression"  # else a pipeline puts the score through a sigmoid
    config.score_bias = module.head.bias.item()
    with torch.device("meta"):
        empty: PreTrainedModel = kind._from_config(config, dtype=dtype)
    state = {f"{empty.base_model_prefix}.{name}": weight for name, weight in body.items()}
    state["score.weight"] = module.head.weight.detach().cpu()  # in float32, whatever the body's dtype
    if state.keys() != empty.state_dict().keys():  # a head of another form
        return False
    empty.save_pretrained(folder, state_dict=state)
    own.save_pretrained(folder)
    return True


def padding_apart(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that pads with a token which ends no text; with EOS where it has no such token."""
    own = copy.deepcopy(tokenizer)
    for token in (own.pad_token, own.bos_token, own.unk_token):
        if token is not None and token != tokenizer.eos_token and own.get_vocab()[token] < vocabulary:
            own.pad_token = token
            return own
    own.pad_token = own.eos_token
    return own


def is_classifier(folder: Path) -> bool:
    """Whether transformers loads the folder as a classifier, head and all."""
    config = AutoConfig.from_pretrained(folder)
    return any(name.endswith(SUFFIX) for name in config.architectures or ())


def how_to_score(folder: Path) -> str:
    """What transformers makes of a whole reward model's folder, and what its user has to do."""
    config = AutoConfig.from_pretrained(folder)
    if not is_classifier(folder):
        return (
            f"transformers has no classifier with one plain head for {config.model_type} models: it loads the body with "
            "AutoModel, and the head is head.safetensors"
        )
    text = "transformers loads it with AutoModelForSequenceClassification"
    if config.get_text_config().pad_token_id is None:
        text += (
            ", one row at a time: the tokenizer has no token that ends no text. For batches, set tokenizer.pad_token and "
            "model.config.pad_token_id to a token that none of your texts ends with"
        )
    if config.score_bias:
        text += f"; add model.config.score_bias ({config.score_bias:.6g}) to its scores, for its head has no bias"
    return text


@torch.no_grad()
def classifier_scores(folder: Path, segments: Sequence[Segment]) -> list[float]:
    """The score of each completion by transformers' classifier in float32, one row at a time."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [[*segment.prompt_ids, *ids] for segment in segments for ids in segment.completion_ids]
    return [float(model(torch.tensor([row])).logits) + model.config.score_bias for row in rows]
