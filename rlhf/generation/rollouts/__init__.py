"""Rollouts by an engine of vLLM instead of the module that trains, kept in step by the policy's LoRA adapter.

Both engines implement `engine.Engine` and give each token's log-probability, which training compares with its own.
"""
