"""How the worker bears many people: one trace of visits, the ladder of policies, a real and a virtual clock.

    trace.py      who comes when, and what they do: fixed, and shipped as trace.jsonl
    visitors.py   what one visitor does, on whichever clock
    virtual.py    the scheduling decisions alone, with tick costs in place of ticks
    real.py       the worker itself
    figures.py    the rows of the report
    plots.py      and its pictures

The command is `python -m tools.load`.
"""
