"""Stream a dataset, from a folder or from the Hub: python examples/stream_dataset.py [DATA] [ENVIRONMENT]."""

import sys

from ldm_hf.dataset_builder.format.reader import open_datasets


def main(data: str = "runs/quickstart/data", environment: str = "gymnasium/CartPole-v1") -> None:
    (dataset,) = open_datasets(data, [environment], cached=False)
    chunk = dataset.chunk(0)  # alone: of the Hub's file, only the bytes of this chunk are fetched
    agreement = (chunk.actions == chunk.reference_actions).all(axis=1).sum()
    print(f"{len(chunk)} consecutive transitions of {dataset.num_transitions}, observations {chunk.observations.shape}")
    print(f"the recorded action was the reference action in {agreement} of them")


if __name__ == "__main__":
    main(*sys.argv[1:3])
