"""Kills builds and publications at random moments, and compares what they made with what undisturbed ones make.

    python benchmarks/kills.py --kills 100 --seed 0 --output kills.json

Half of the kills hit the driver (`ldm build`, `ldm publish`), half a worker, always by SIGKILL. What must hold: every file
is that of an undisturbed build, to the byte; a run that was finished is not made again; what readers see of the Hub is
always one of the two states that a publication leads from and to; and no process is left, anywhere below what was killed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from loopback import LoopbackHub

CARTPOLE, ACROBOT = "gymnasium/CartPole-v1", "gymnasium/Acrobot-v1"
CANDIDATES = ("A2C", "PPO-short-rollouts", "A2C-8-envs", "PPO")
BUILDS = {
    # Four candidates are ranked, which is training only; three are not, so that every job is a run that is recorded.
    "training": ([CARTPOLE], CANDIDATES, 12_000),
    "recording": ([CARTPOLE, ACROBOT], CANDIDATES[:3], 6000),
}
TOKEN, NAME = "hf_writer", "writer/ldm-gymnasium"
MARK = "LDM_KILLS"
_LONGEST_WAIT = 10.0  # seconds from the start of a command, or from the last kill, to a kill
_ENDS_WITHIN = 30.0  # seconds after a kill, all that is below what was killed


def build_command(kind: str, out: Path, *more: str) -> list[str]:
    """The build of a kind."""
    environments, candidates, transitions = BUILDS[kind]
    named = [part for name in candidates for part in ("--candidates", name)]
    options = [
        "--budget",
        "small",
        "--transitions",
        str(transitions),
        "--jobs",
        "2",
        "--keep-unstable",
        "--output",
        str(out),
    ]
    return [sys.executable, "-m", "ldm_hf", "build", *environments, *named, *options, *more]


class Killing:
    """One session: what was killed, and what went wrong."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.kills: Counter[str] = Counter()
        self.wrong: list[str] = []

    @contextlib.contextmanager
    def started(self, command: list[str], variables: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
        """A command, all of whose processes can be found again by a mark in their environment."""
        log = (self.folder / "log.txt").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {}), MARK: self.mark}
        with log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
            yield process

    def note(self, *lines: str) -> None:
        """Say what went wrong, and remember it."""
        self.wrong += lines
        for line in lines:
            print(f"wrong: {line}", flush=True)

    def kill(self, kind: str, who: str, process: psutil.Process) -> bool:
        """Kill a process; whether it was there."""
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return False
        self.kills[f"{kind}, {who}"] += 1
        print(f"{sum(self.kills.values())}: {kind}, {who}", flush=True)
        return True

    def nothing_is_left(self, kind: str) -> None:
        """Note the processes that outlive what was killed."""
        deadline = time.monotonic() + _ENDS_WITHIN
        while left := list(self._marked()):
            if time.monotonic() > deadline:
                self.note(f"{kind}: {len(left)} processes are left: {left[0].cmdline()}")
                for process in left:
                    process.kill()
                return
            time.sleep(0.05)

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    yield process


def kill_builds(session: Killing, kind: str, number: int) -> None:
    """Kill builds of one kind, a worker and then the driver, again and again; each build is compared when it is done.

    A job is tried twice by one driver, so that each driver loses one worker at most. Publications have no workers: here
    three drivers are killed for every five workers.
    """
    expected = session.folder / f"{kind}-expected"
    with session.started(build_command(kind, expected)) as process:
        assert process.wait() == 0, (session.folder / "log.txt").read_text()[-2000:]
    left, builds = number, 0
    while left:
        out = session.folder / f"{kind}-{builds}"
        done, finished = False, dict[Path, int]()
        while not done:
            with session.started(build_command(kind, out)) as driver:
                for who in ("worker", "driver"):
                    enough = (
                        who == "driver" and 5 * session.kills[f"{kind}, driver"] >= 3 * session.kills[f"{kind}, worker"]
                    )
                    if left and not enough and wait_for_moment(session, driver):
                        victim = psutil.Process(driver.pid) if who == "driver" else some_worker(session, driver.pid)
                        left -= bool(victim and session.kill(kind, who, victim))
                code = driver.wait()
            session.nothing_is_left(kind)
            if code not in (0, -signal.SIGKILL):
                session.note(f"{kind}: the build ended with {code}")
            now = {path: path.stat().st_mtime_ns for path in out.glob("gymnasium/*/*/run.json")}
            # Curation writes the records of runs again that it drops; those that it keeps are as they were.
            again = [path for path, moment in finished.items() if now.get(path) != moment and not dropped(path)]
            session.note(*[f"{kind}: {path} was made again, or is gone" for path in again])
            done, finished = code == 0, now
        compare(session, kind, out, expected)
        shutil.rmtree(out)
        builds += 1


def wait_for_moment(session: Killing, process: subprocess.Popen) -> bool:
    """Wait for a random moment; whether the process still runs then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(session.random.uniform(0.2, _LONGEST_WAIT))
    return process.poll() is None


def some_worker(session: Killing, driver: int) -> psutil.Process | None:
    """A process of the driver that runs jobs."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(driver).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return session.random.choice(workers) if workers else None
    return None


def dropped(record: Path) -> bool:
    """Whether a run was dropped."""
    return record.is_file() and json.loads(record.read_text())["dropped"] is not None


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, but for the lock, and for how long runs took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".ldm-lock":
            text = path.read_bytes()
            if path.name == "run.json":
                text = json.dumps({**json.loads(text), "seconds": None}).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(text).hexdigest()
    return found


def compare(session: Killing, what: str, found: Path, expected: Path) -> None:
    """Note every file that is lost, doubled or different."""
    one, other = contents(found), contents(expected)
    session.note(
        *[f"{what}: {path} differs" for path in sorted(set(one) | set(other)) if one.get(path) != other.get(path)]
    )


def kill_publications(session: Killing, number: int) -> None:
    """Kill publications at random requests, back and forth between two states that replace and lack runs of each other."""
    whole = session.folder / "recording-expected"
    part = session.folder / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "gymnasium/Acrobot-v1")
    policy = next((part / "gymnasium/CartPole-v1").glob("*/policy/policy.json"))
    policy.write_text(policy.read_text() + " ")
    subprocess.run([sys.executable, "-c", _DESCRIBE, str(policy.parent.parent)], check=True)
    states: dict[Path, dict[str, str]] = {}
    with LoopbackHub(session.folder / "blobs", {TOKEN: "writer"}) as hub:
        for corpus in (whole, part, whole):  # which also counts the requests of an undisturbed change
            hub.requests.clear()
            publish(session, hub, corpus, lambda: False)
            states[corpus] = hub_files(hub)
        requests, left, turn = len(hub.requests), number, 0
        before = states[whole]
        while left:
            corpus = (part, whole)[turn % 2]
            hub.requests.clear()
            moment = session.random.randint(1, requests)
            killed = publish(session, hub, corpus, lambda moment=moment: len(hub.requests) >= moment)
            left -= killed
            session.nothing_is_left("publishing")
            check_hub(session, hub, before, states[corpus])
            if not killed or session.random.random() < 0.3:  # on to the other state, once this one is there
                publish(session, hub, corpus, lambda: False)
                if hub_files(hub) != states[corpus]:
                    session.note("publishing: the repository differs from that of an undisturbed publication")
                before, turn = states[corpus], turn + 1


_DESCRIBE = """
import sys
from dataclasses import replace
from pathlib import Path
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files
from ldm_hf.dataset_builder.repository.repository import update_repository
folder = Path(sys.argv[1])
replace(RunRecord.read(folder), files=describe_files(folder)).write(folder)
update_repository(folder.parent.parent)
"""


def publish(session: Killing, hub: LoopbackHub, corpus: Path, is_the_moment: Callable[[], bool]) -> bool:
    """Publish a corpus, and kill that at a moment; whether it was killed."""
    command = [sys.executable, "-m", "ldm_hf", "publish", str(corpus), "--namespace", "writer", "--delete", "--yes"]
    with session.started(command, hub.environment(session.folder / "home", TOKEN)) as process:
        while process.poll() is None:
            if is_the_moment():
                return session.kill("publishing", "driver", psutil.Process(process.pid))
            time.sleep(0.0005)
    if process.returncode:
        session.note(f"publishing: it ended with {process.returncode}")
    return False


def hub_files(hub: LoopbackHub) -> dict[str, str]:
    """SHA-256 of every file of the repository, by path."""
    return {path: blob.sha256 for path, (blob, _) in hub.repos["datasets", NAME].find("main").files.items()}


def check_hub(session: Killing, hub: LoopbackHub, before: dict[str, str], after: dict[str, str]) -> None:
    """Note a manifest that is neither the old one nor the new one, or that lists files that are not there."""
    files = hub_files(hub)
    if files["manifest.parquet"] not in (before["manifest.parquet"], after["manifest.parquet"]):
        session.note("publishing: the manifest is neither the old one nor the new one")
    rows = pq.read_table(hub.folder / files["manifest.parquet"]).to_pylist()
    listed = {entry["path"]: entry["sha256"] for row in rows for entry in row["files"]}
    missing = [path for path, digest in listed.items() if files.get(path) != digest]
    session.note(*[f"publishing: {path} is not what the manifest says" for path in missing])


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=100, help="40 %% of them in training, 40 %% in recording, 20 %% in publishing"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        session = Killing(options.seed, Path(temporary))
        publishing = options.kills // 5
        training = (options.kills - publishing) // 2
        kill_builds(session, "recording", options.kills - publishing - training)
        kill_builds(session, "training", training)
        kill_publications(session, publishing)
    figures = {"seed": options.seed, "kills": dict(session.kills), "wrong": session.wrong}
    figures["minutes"] = round((time.monotonic() - start) / 60, 1)
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1))
    sys.exit(bool(session.wrong))


if __name__ == "__main__":
    main()
