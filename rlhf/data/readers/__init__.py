"""Files whose rows do not stand one beside the other: conversations in text, trees, nested questions, dumps, the hub.

Below `sources`, beside `textfiles` and `tablefiles`. Each reader gives rows that `formats` can convert one by one, and counts what it leaves out.
"""
