"""Pretrained models as the two things training needs: a policy (log-probabilities) and a scalar model (scores, values)."""
