"""Stream a dataset with plain `datasets`: python examples/stream_dataset.py [REPOSITORY] [CONFIG]."""

import sys

import pyarrow as pa
from datasets import load_dataset


def main(repository: str = "runs/quickstart/data/gymnasium", config: str = "CartPole-v1") -> None:
    # A shard is one chunk of consecutive transitions. It is read to its end: while pyarrow still reads ahead when Python
    # ends, it may abort the process (https://github.com/apache/arrow/issues/45214).
    dataset = load_dataset(repository, config, split="train", streaming=True).reshard()
    shard = dataset.shard(num_shards=dataset.num_shards, index=0).with_format("arrow")
    batch = pa.concat_tables(shard.iter(batch_size=8192))
    agreement = sum(map(list.__eq__, batch["action"].to_pylist(), batch["reference_action"].to_pylist()))
    print(f"{batch.num_rows} transitions, columns {', '.join(batch.column_names)}")
    print(f"the recorded action was the reference action in {agreement} of them")


if __name__ == "__main__":
    main(*sys.argv[1:3])
