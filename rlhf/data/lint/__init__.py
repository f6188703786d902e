"""Findings from what `stats` measured: `findings.lint` joins `rows` and `texts`; `console` and the page of stats show them.

Importing this package imports nothing; its modules are imported by name.
"""
