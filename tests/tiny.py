"""A tokenizer small enough to build in memory, with the traps of real ones.

Byte-level BPE over a few sentences, ChatML's template (a newline after the end of a turn), bos `<|im_start|>`, eos
`<|im_end|>`, and pad the same token as eos unless asked otherwise.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "The film was good and the answer is yes.",
    "Question: what is a good film?\n\nAnswer: the one that you like.",
    "\n\nHuman: hello there, how are you?\n\nAssistant: I am well, thank you.",
    "user assistant system 1 2 3 4 5 6 7 8 9 10",
    "좋은 영화였습니다. 무엇을 도와드릴까요?",
)


@cache
def tiny_tokenizer(pad_is_eos: bool = True, chat: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer; `adds_bos` puts the BOS token before every text, as Llama's does. Shared: do not change it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(list(SENTENCES) * 4, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", core.token_to_id("<|im_start|>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>" if pad_is_eos else "<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer
