"""Files whose rows do not stand one beside the other: conversations in text, trees, nested questions, dumps, the hub.

`sources` calls them by a file's suffix. Each reader gives rows that `formats` can convert one by one, and counts the rows it leaves out.
"""
