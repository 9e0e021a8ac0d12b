"""Two nodes on one machine: network namespaces with a link of limited speed; what training sends, and a node that is killed.

    sudo python benchmarks/two_nodes.py --rates 10000 1000 200        # Mbit/s; needs Linux, root, ip and tc

Each node has one training process; they speak gloo over a pair of virtual interfaces whose bytes are counted. Two runs of
different lengths tell what a step sends from what the start does. Then the second node is killed with SIGKILL in the middle
of a run, launcher and all, and launched again, as a scheduler would: the run must end with the weights of one that nobody
disturbed. The last table is arithmetic: 16 GPUs of two nodes, from the bytes that were counted.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file
from training import flops

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig, LDMModel

NODES = ("ldm-node-0", "ldm-node-1")
LINKS = ("ldm-link-0", "ldm-link-1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
KEPT_ALIVE = 20
"""Seconds after which the meeting place has noticed that a node is gone: before, its next launcher would be taken for it."""

HOSTS = Path("/etc/netns")
BANK = Path(__file__).parents[1] / "bank"
SHARDINGS = ("none", "fsdp2")  # DDP is none


def ip(*arguments: str) -> str:
    """What ``ip`` answers."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Nodes:
    """Two namespaces and the link between them."""

    def __enter__(self) -> "Nodes":
        self.__exit__()
        for node in NODES:
            ip("netns", "add", node)
            # What `ip netns exec` shows as /etc/hosts: processes of the other node are met by this one's name.
            (HOSTS / node).mkdir(parents=True)
            names = "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NODES, strict=True))
            (HOSTS / node / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
        for node, link, address in zip(NODES, LINKS, ADDRESSES, strict=True):
            ip("link", "set", link, "netns", node)
            ip("-n", node, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", node, "link", "set", link, "up")
            ip("-n", node, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for node in NODES:
            self.kill(node)
            subprocess.run(["ip", "netns", "del", node], capture_output=True, check=False)
            shutil.rmtree(HOSTS / node, ignore_errors=True)

    def limit(self, megabits: float) -> None:
        """Set the speed of the link, in both directions."""
        for node, link in zip(NODES, LINKS, strict=True):
            limited = ["rate", f"{megabits}mbit", "burst", "1mb", "latency", "100ms"]
            command = ["ip", "netns", "exec", node, "tc", "qdisc", "replace", "dev", link, "root", "tbf", *limited]
            subprocess.run(command, check=True)

    def sent(self) -> int:
        """Bytes that the first node has sent so far."""
        return int(json.loads(ip("-n", NODES[0], "-s", "-j", "link", "show", LINKS[0]))[0]["stats64"]["tx"]["bytes"])

    def kill(self, node: str) -> None:
        """Kill all processes of a node."""
        found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def launch(self, rank: int, settings: Path, *options: str) -> subprocess.Popen:
        """Start one node's launcher."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', NODES[rank]]
        command = ["ip", "netns", "exec", NODES[rank], *named, sys.executable, "-m", "ldm_hf", "launch", "--multi_gpu"]
        command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29500", "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", *options, "-m", "ldm_hf", "train", "--config", str(settings)]
        variables = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": LINKS[rank], "OMP_NUM_THREADS": "1"}
        log = (settings.parent / f"node-{rank}.log").open("ab")
        return subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)


def settings_of(folder: Path, data: Path, name: str, **changes: object) -> Path:
    """A file of settings of a short run."""
    values = {
        "data": str(data),
        "output_dir": str(folder / name / "run"),
        "model": "nano",
        "train_batch_size": 2,
        "context_length": 64,
        "logging_steps": 1,
        "bf16": False,
        "report_to": "none",
        **changes,
    }
    path = folder / name / "settings.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(values))
    return path


def run(nodes: Nodes, settings: Path) -> None:
    """A run of both nodes to its end."""
    launched = [nodes.launch(rank, settings) for rank in (0, 1)]
    if any([one.wait(900) for one in launched]):  # noqa: C419 # waits for both
        raise RuntimeError("\n".join((settings.parent / f"node-{rank}.log").read_text()[-2000:] for rank in (0, 1)))


def traffic(nodes: Nodes, folder: Path, data: Path, sharding: str, megabits: float, steps: int) -> tuple[float, float]:
    """Bytes that a node sends in a step, and seconds of one."""
    nodes.limit(megabits)
    sent, seconds = [], []
    for length in (1, 1 + steps):
        settings = settings_of(folder, data, f"{sharding}-{megabits:g}-{length}", max_steps=length, sharding=sharding)
        before, start = nodes.sent(), time.perf_counter()
        run(nodes, settings)
        sent.append(nodes.sent() - before)
        seconds.append(time.perf_counter() - start)
    return (sent[1] - sent[0]) / steps, (seconds[1] - seconds[0]) / steps


def killed(nodes: Nodes, folder: Path, data: Path) -> float:
    """Kill the second node in the middle of a run and launch it again: the largest difference of the weights."""
    nodes.limit(10_000)
    elastic = ["--rdzv_backend", "c10d", "--max_restarts", "5"]
    changes = {"max_steps": 80, "save_steps": 5}
    whole, broken = (settings_of(folder, data, name, **changes) for name in ("whole", "broken"))
    run(nodes, whole)
    first, second = (nodes.launch(rank, broken, *elastic) for rank in (0, 1))
    deadline = time.monotonic() + 300
    while not any((broken.parent / "run").glob("**/checkpoint-*")):
        if time.monotonic() > deadline or first.poll() is not None:
            raise RuntimeError(f"no checkpoint was written: {(broken.parent / 'node-0.log').read_text()[-2000:]}")
        time.sleep(0.2)
    nodes.kill(NODES[1])
    second.wait()
    time.sleep(KEPT_ALIVE)
    again = nodes.launch(1, broken, *elastic)
    if first.wait(600) or again.wait(600):
        raise RuntimeError("\n".join((broken.parent / f"node-{rank}.log").read_text()[-2000:] for rank in (0, 1)))
    weights = [load_file(path.parent / "run" / "model" / "model.safetensors") for path in (whole, broken)]
    return max(float(np.abs(weights[0][name] - weights[1][name]).max()) for name in weights[0])


def projection(parameters: int, tflops: float) -> list[list[str]]:
    """A step of 308m on two nodes of 8 GPUs, each at ``tflops``, by what the counted bytes say a step sends.

    Gradients are float32, gathered weights bfloat16. DDP reduces once a step, while the last of 8 passes goes backward;
    FSDP2 gathers weights twice a pass. Rings cross the link between the nodes once in each direction.
    """
    gpus, passes, share = 16, 8, 15 / 16
    transitions = 1024 * 2048 / gpus
    computing = transitions * flops(LDMConfig.preset("308m")) / (tflops * 1e12)
    sent = {"DDP": 2 * share * 4 * parameters, "FSDP2": (2 * passes * 2 + 4) * share * parameters}
    hidden_behind = {"DDP": computing / passes * 2 / 3, "FSDP2": computing}
    rows = []
    for name, count in sent.items():
        for gigabits in (100, 400, 3200):
            sending = count * 8 / (gigabits * 1e9)
            step = computing + max(0.0, sending - hidden_behind[name])
            cells = [f"{count / 1e9:.1f}", f"{sending:.3f}", f"{computing:.2f}", f"{computing / step:.2f}"]
            rows.append([name, str(gigabits), *cells])
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="*", default=[10_000, 1000, 200], help="Mbit/s of the link.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--utilisation", type=float, default=0.4, help="Share of a GPU's peak, for the last table.")
    parser.add_argument("--peak-tflops", type=float, default=989, help="Of a GPU, dense bfloat16.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with torch.device("meta"):
        parameters = {name: LDMModel(LDMConfig.preset(name)).num_parameters() for name in ("nano", "308m")}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, Nodes() as nodes:
        folder = Path(scratch)
        data = folder / "data"
        build = [sys.executable, "-m", "ldm_hf", "build", "gymnasium/CartPole-v1", "gymnasium/Acrobot-v1"]
        subprocess.run([*build, "--from-bank", str(BANK), "--transitions", "4000", "--output", str(data)], check=True)
        rows = []
        for sharding in SHARDINGS:
            for megabits in options.rates:
                sent, seconds = traffic(nodes, folder, data, sharding, megabits, options.steps)
                share = sent / (4 * parameters["nano"])
                figures |= {
                    f"{sharding}_{megabits:g}_sent_per_weight_bytes": share,
                    f"{sharding}_{megabits:g}_s": seconds,
                }
                rows.append([sharding, f"{megabits:g}", f"{sent / 1e6:.1f}", f"{share:.2f}", f"{seconds:.2f}"])
        columns = ["sharding", "Mbit/s", "MB sent per step", "in bytes of all weights", "s per step"]
        print_table("A step of two nodes, nano", columns, rows)
        figures["killed_largest_difference"] = killed(nodes, folder, data)
    columns = ["sharding", "Gbit/s", "GB per step", "s to send", "s to compute", "efficiency"]
    rows = projection(parameters["308m"], options.utilisation * options.peak_tflops)
    print_table("308m, 16 GPUs of two nodes, computed", columns, rows)
    print(f"a node was killed and launched again: weights differ by {figures['killed_largest_difference']:g}")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
