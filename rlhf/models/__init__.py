"""Pretrained models as the two things training needs: a policy (log-probabilities) and a scalar model (scores, values)."""

import logging

# peft imports bitsandbytes wherever it is installed, which then warns of an optional kernel that nobody asked for
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
