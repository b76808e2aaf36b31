"""User studies: plan (the study file), log (events), page (what participants see), report (the analysis).

`python -m app.study --help` lists the commands; docs/study.md explains how to run a study.
"""
