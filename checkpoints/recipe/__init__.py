"""How `checkpoints/landscapes` was made: scenes, drawings, captions, and the training of every network.

Nothing here is imported at run time; the order of the stages is in `README.md` beside this file.
"""
