"""Load a policy and act with it: python examples/act.py [MODEL] [ENVIRONMENT]."""

import sys

from transformers import AutoModel, AutoProcessor

import ldm_hf


def main(folder: str = "runs/quickstart/model", environment: str = "gymnasium/CartPole-v1", episodes: int = 3) -> None:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    env = ldm_hf.make(environment)
    policy = model.policy(processor, [env])  # The context starts empty and is kept across episodes.
    observation, _ = env.reset(seed=0)
    (action,) = policy.act([observation])
    for episode in range(episodes):
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
            if done:
                observation, _ = env.reset()
            (action,) = policy.act([observation], [float(reward)], [terminated], [truncated])
        print(f"episode {episode}: return {total:g}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
