"""Policies as data: adopting those that exist, keeping them, and rolling them out."""
