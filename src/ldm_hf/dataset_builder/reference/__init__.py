"""Reference policies: candidates, training them with Stable-Baselines3, recording and relabelling what they did."""
