"""Data: rows (sources, formats, rankings, dedup, build), then tokens (template, dataset, sampler, segments).

Importing this package imports nothing; its modules are imported by name.
"""
