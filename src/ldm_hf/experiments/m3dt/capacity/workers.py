"""Chains of cells in processes of one thread each."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
import typer

from ldm_hf.experiments.m3dt.capacity.cells import Cell
from ldm_hf.experiments.m3dt.capacity.study import Study
from ldm_hf.utils.processes import exit_with_owner


def measure_chains(study: Study, chains: Sequence[Sequence[Cell]], jobs: int) -> None:
    """Measure the cells that are missing, the first chains first."""
    waiting = [chain for chain in chains if any(study.record(cell) is None for cell in chain)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (os.getpid(),)) as pool:
        try:
            for done in as_completed([pool.submit(measure_chain, study, chain) for chain in waiting]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def measure_chain(study: Study, chain: Sequence[Cell]) -> None:
    """Measure cells one after the other, and say what came out."""
    for cell in chain:
        if study.record(cell) is None:
            found = study.measure(cell)
            typer.echo(f"{time.strftime('%H:%M:%S')} {cell.name}: {found['score']:.1f}, {found['seconds']} s", err=True)


def _begin(owner: int) -> None:
    exit_with_owner(owner)
    torch.set_num_threads(1)
