"""Rows become text by a template, then token ids on disk, then batches of segments. Importing this package imports nothing."""
