"""Load tests of the worker: replay a trace of visits under several scheduling policies.

    trace.py      the visits, a fixed trace in trace.jsonl
    visitors.py   the requests of one visitor, on either clock
    virtual.py    the virtual clock: scheduling decisions with measured tick costs, without computing
    real.py       the real clock: the worker itself
    runs.py       one run on either clock
    soak.py       a long run with cancels and failures
    figures.py    the rows of the report
    plots.py      its plots

The command is `python -m tools.load`.
"""
