"""The held-out environments of the benchmark: none of them is in the training list of a model that it judges.

The list was fixed before anything was trained on it: entries of the bank whose reference passes every flag.
"""

KNOWN = (
    "gymnasium/BipedalWalker-v3",
    "metaworld/MT1/drawer-open-v3",
    "minigrid/BabyAI-GoToRedBallGrey-v0",
    "mo-gymnasium/breakable-bottles-v0",
    "nasim/TinySmall2D-v0",
)
"""Of libraries of which ``pretrained/ldm-mini`` knows other environments."""

UNKNOWN = (
    "gymnax/Acrobot-v1",  # another implementation of a task that ldm-mini knows
    "gymnax/Catch-bsuite",  # the same
    "or-gym/Knapsack-v3",
    "panda-gym/PandaReachDense-v3",
    "panda-gym/PandaReachJointsDense-v3",
)
"""Of libraries of which it knows none."""

HELD_OUT = (*KNOWN, *UNKNOWN)
