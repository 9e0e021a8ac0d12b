"""When experts help (M3DT, arXiv 2505.24378), on tasks that are known exactly: docs/experts.md."""
