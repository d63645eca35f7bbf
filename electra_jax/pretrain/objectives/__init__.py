"""Pretraining objectives, one file each; `registry.OBJECTIVES` lists them.

`objective.Objective` is what an objective defines, and `parts` holds what several of them combine.
"""
