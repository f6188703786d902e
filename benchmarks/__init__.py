"""Side by side with the peers, each prints ratios. Run as `python -m benchmarks.NAME` from the project's root."""
