"""What becomes of rows: text by a template, token ids on disk, batches of segments. Importing it costs nothing."""
