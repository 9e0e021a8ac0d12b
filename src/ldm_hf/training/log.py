"""What a training run says: the bar, and the figures that go to the trackers."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ldm_hf.training.config import TrainingConfig
from ldm_hf.utils.progress import progress_bar

_WAITING_TO_SHOW = 0.05


class TrainingLog:
    """Loss, learning rate, gradient norm, speed, time waited for data, memory and scores, every ``logging_steps`` steps.

    The loss is the mean over the labelled transitions of a step of all processes, averaged over the steps since the last
    figures. Speed leaves out what happens in ``paused``: checkpoints and evaluation.

    Args:
        accelerator, config: of the run.
        start: steps that are done.
        progress: told the number of steps that are done, instead of a progress bar.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        start: int,
        progress: Callable[[int], None] | None = None,
    ):
        self._accelerator = accelerator
        self._progress = progress
        self._config = config
        self._scores = ""
        self._loss = self._norm = torch.zeros((), device=accelerator.device)
        self._begin(start)
        hidden = progress is not None or not accelerator.is_main_process
        self._bar = progress_bar("training", config.max_steps, "step", initial=start, disable=hidden)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what hands out the next batch. It counts where the device has run out of work meanwhile."""
        start = time.perf_counter()
        yield
        if self._accelerator.device.type != "cuda" or torch.cuda.current_stream().query():
            self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add the loss of a piece of a step, as it was differentiated."""
        self._loss = self._loss + loss.detach().float()

    def step(self, done: int, learning_rate: float, norm: torch.Tensor, transitions: int) -> None:
        """A step has ended; all processes call this together."""
        self._transitions += transitions
        self._norm = norm
        if done % self._config.logging_steps == 0 or done == self._config.max_steps:
            values = self._values(done, learning_rate)
            self._accelerator.log(values, step=done)
            text = f"loss {values['loss']:.4f}, {values['transitions_per_second']:,.0f} transitions/s"
            if values["wait_fraction"] > _WAITING_TO_SHOW:
                text += f", {values['wait_fraction']:.0%} waiting for data"
            self._bar.set_postfix_str(text + self._scores, refresh=False)
            self._begin(done)
        self._bar.update(1)
        if self._progress is not None:
            self._progress(done)

    def scores(self, done: int, values: Mapping[str, float]) -> None:
        """Scores of an evaluation, or the loss of a validation, by name."""
        if values:
            self._accelerator.log(dict(values), step=done)
        if "score/mean" in values:
            self._scores = f", score {values['score/mean']:.0%}"

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._accelerator.is_main_process:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _begin(self, done: int) -> None:
        self._loss = torch.zeros((), device=self._accelerator.device)
        self._waited, self._transitions = 0.0, 0
        self._since, self._last_step = time.perf_counter(), done

    def _values(self, done: int, learning_rate: float) -> dict[str, float]:
        """The figures since the last ones; all processes call this together."""
        device = self._accelerator.device
        loss = float(self._loss)  # waits for the device, so that the clock is right
        elapsed = time.perf_counter() - self._since
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        own = torch.tensor([[loss, self._waited, peak]], dtype=torch.float32, device=device)
        every = self._accelerator.gather(own)
        speed = self._transitions / elapsed
        values = {
            # Gradients, and so losses, are the mean over processes of what each made of its share.
            "loss": float(every[:, 0].mean()) / (done - self._last_step),
            "learning_rate": learning_rate,
            "gradient_norm": float(self._norm),
            "transitions_per_second": speed,
            "transitions_per_second_per_device": speed / self._accelerator.num_processes,
            "wait_fraction": float(every[:, 1].max()) / elapsed,  # the slowest holds up all
        }
        if device.type == "cuda":
            values["peak_memory_gib"] = float(every[:, 2].max())
        return values
