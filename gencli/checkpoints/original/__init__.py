"""Stable Diffusion's original layout (CompVis, Stability AI): tables of its names, and the configs that shapes tell.

No torch, but in `tensors`.
"""
