"""Rows: sources, formats, rankings, dedup, statistics, and the build that joins them. Importing it costs nothing.

Importing this package imports nothing; its modules are imported by name.
"""
