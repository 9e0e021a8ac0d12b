"""Stream a dataset with plain `datasets`: python examples/stream_dataset.py [REPOSITORY] [CONFIG]."""

import sys

from datasets import load_dataset


def main(repository: str = "runs/quickstart/data/gymnasium", config: str = "CartPole-v1") -> None:
    dataset = load_dataset(repository, config, split="train", streaming=True)
    batch = next(iter(dataset.with_format("arrow").iter(batch_size=1000)))
    agreement = sum(map(list.__eq__, batch["action"].to_pylist(), batch["reference_action"].to_pylist()))
    print(f"{batch.num_rows} transitions, columns {', '.join(batch.column_names)}")
    print(f"the recorded action was the reference action in {agreement} of them")


if __name__ == "__main__":
    main(*sys.argv[1:3])
