"""Mixtures of experts in three stages (M3DT, arXiv 2505.24378): ``python -m ldm_hf.experiments.m3dt``, docs/experts.md."""
