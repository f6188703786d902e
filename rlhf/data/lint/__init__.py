"""Findings from what `stats` measured. `findings.lint` joins the checks of `rows` and `texts`; `console` and `page` of stats show them.

Importing this package imports nothing. Import its modules by name.
"""
