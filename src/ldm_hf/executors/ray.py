"""Jobs on a Ray cluster. State is on disk, so that all nodes must see the data folder under the same path."""

import logging
import os
import socket
import uuid
from pathlib import Path
from typing import Any

from ldm_hf.errors import ConfigError, LDMError, one_line
from ldm_hf.executors.base import JobResult, Message, Work
from ldm_hf.utils.dependencies import require

_TRIES = 5  # of a job whose node or process is lost, before it counts as crashed
_CONNECT_SECONDS = 10.0
_VARIABLES = ("LDM_HOME", "LDM_PROVIDER", "LDM_BASE_IMAGE")  # that jobs need as the driver has them


class RayExecutor:
    """Jobs on the nodes of a Ray cluster, one core each; a job whose node is lost starts again on another.

    Args:
        address: of the cluster's head (``host:6379``), ``auto`` for the one that this machine belongs to, or ``local`` for
            one of its own.
        root: data folder.
        gpus: share of a GPU for each job that gains from one, which trains there; 0 for none.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: no cluster answers, or a node does not see the data folder.
    """

    def __init__(self, address: str, root: Path, gpus: float = 0.0):
        require("the Ray executor", "ray")
        import ray

        self._ray = ray
        self._gpus = gpus
        _check_address(address)
        variables = {"OMP_NUM_THREADS": "1", **{name: os.environ[name] for name in _VARIABLES if name in os.environ}}
        try:
            ray.init(
                address=address,
                logging_level=logging.WARNING,
                log_to_driver=False,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = one_line(error, 200)
            raise ConfigError(f"no Ray cluster at {address}: {reason}; start one with: ray start --head") from error
        self._running: dict[Any, Work] = {}
        self._check_folder(root)
        self._look()

    def has_room(self, job: Work) -> bool:
        """Whether the cluster has a free core; Ray itself looks after memory and GPUs."""
        return len(self._running) < self._cores

    def submit(self, job: Work) -> None:
        """Hand a job to the cluster."""
        task = self._ray.remote(_execute).options(
            num_cpus=1,
            num_gpus=self._gpus if job.wants_gpu else 0,
            memory=min(job.memory, self._largest),  # what no node has would never start
            max_retries=_TRIES,
            scheduling_strategy="SPREAD",
            name=job.name,
        )
        device = "cuda" if self._gpus and job.wants_gpu else "cpu"
        self._running[task.remote(job.on(device))] = job

    def wait(self, seconds: float) -> list[JobResult]:
        """The jobs that have ended."""
        finished, _ = self._ray.wait(list(self._running), timeout=seconds)
        self._look()
        ended = []
        for reference in finished:
            job = self._running.pop(reference)
            try:
                self._ray.get(reference)
                ended.append(JobResult(job))
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, LDMError):
                    raise error.cause from error
                raise
            except self._ray.exceptions.RayError as error:
                ended.append(JobResult(job, f"its process or node was lost: {type(error).__name__}"))
        return ended

    def messages(self) -> list[Message]:
        """Nothing: the cluster's dashboard shows how far jobs are."""
        return []

    def close(self) -> None:
        """Cancel what runs and leave the cluster."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def _look(self) -> None:
        """Cores of the cluster, and memory of its largest node, now: nodes come and go."""
        resources = [node["Resources"] for node in self._nodes()]
        self._cores = max(1, int(sum(each.get("CPU", 0) for each in resources)))
        self._largest = int(max((each.get("memory", 0) for each in resources), default=0))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _check_folder(self, root: Path) -> None:
        """Every node must see what this process writes."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        root.mkdir(parents=True, exist_ok=True)
        mark = root / f".seen-{uuid.uuid4().hex[:8]}"
        mark.touch()
        try:
            looks = {
                node["NodeManagerHostname"]: self._ray.remote(_sees)
                .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                .remote(str(mark))
                for node in self._nodes()
            }
            blind = [host for host, look in looks.items() if not self._ray.get(look)]
        finally:
            mark.unlink()
        if blind:
            self.close()
            raise ConfigError(
                f"{', '.join(blind)} cannot see {root}: all nodes need the data folder, and ldm_hf, under the same path"
            )


def _check_address(address: str) -> None:
    """Ray itself keeps trying for minutes, and ends the process then."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        return
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            pass
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster at {address}: {error.strerror or error}; start one with: ray start --head"
        ) from error


def _execute(job: Work) -> None:
    job.execute(lambda stage, done, total: None)


def _sees(path: str) -> bool:
    return Path(path).exists()
