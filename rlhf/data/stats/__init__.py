"""What a dataset holds, measured in one pass: `rlhf data stats`, and what `rlhf data lint` judges.

    inputs    a folder, file, glob, `embedded:NAME` or recipe becomes splits of sources, with what training would do with them
    chunk     rows become texts and lengths, a few hundred at a time
    measure   the pass: every measure sees every chunk once, and keeps 64-bit hashes and counts, no texts
    lengths, repeats, scripts, texts, labels        the measures
    console, page, drawings                         the report in the terminal, and as one page without other files

Importing this package imports nothing. Import its modules by name.
"""
