"""User studies: what a study is, who meets what in which order, what is logged, and what it comes to.

`python -m app.study --help` has the commands, docs/study.md the whole story.
"""
