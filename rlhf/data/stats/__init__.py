"""What a dataset holds, measured in one pass: `rlhf data stats`, and what `rlhf data lint` judges.

    inputs    a folder, file, glob, `embedded:NAME` or recipe, as splits of sources and what training would do with them
    chunk     rows as texts and lengths, a few hundred at a time
    measure   the pass: every accumulator sees every chunk once; texts are not kept, only 64-bit hashes and counts
    lengths, repeats, scripts, texts, labels        the accumulators
    console, page, figures                          the report in the terminal and as one self-contained page

Importing this package imports nothing; its modules are imported by name.
"""
