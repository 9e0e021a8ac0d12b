"""The process that runs environments inside an isolated installation: ``python main.py SOCKET``.

Two processes: a supervisor, and its child, which imports the library and serves the environments. The supervisor keeps the
end of the child's output and tells the client how the child ended; when the client closes the lifeline, or dies, the
supervisor ends the child and all that it started. Whatever happens in the child cannot stop that.

Python 3.7 with only numpy and msgpack must run this file.
"""

import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import time

import compatibility
import installed
import msgpack
import protocol
from env_batch import EnvBatch

# Everything is imported before the client is told that the worker is there: it then removes these files.

_OUTPUT_KEPT = 4000  # bytes of the child's output, for the message about its end
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36


class Server:
    """Answers the client's requests, one at a time."""

    def __init__(self, channel):
        """Serve over a channel."""
        self.channel = channel
        self.batch = None
        self.modules = []
        self.spin = 0.0

    def serve(self):
        """Answer until the client is gone."""
        while True:
            try:
                request = self.channel.receive(spin=self.spin)
            except protocol.ChannelClosed:
                return
            does, number = request.pop("do"), request.pop("number")
            writes = does in ("reset", "step") and self.batch is not None
            try:
                if writes:
                    self.batch.shared.number[0] = 0
                answer = getattr(self, "do_" + does)(**request) or {}
            except Exception as error:  # Third-party code raises what it likes: all of it is the client's to hear.
                answer = {"error": "{}: {}".format(type(error).__name__, " ".join(str(error).split()))[:2000]}
            if writes:
                self.batch.shared.number[0] = number
            answer["number"] = number
            self.channel.send(answer)
            if does == "make" and "error" not in answer:
                self.batch.share(protocol.receive_descriptor(self.channel))

    def do_load(self, modules, register):
        """Import the library, so that it registers its environments."""
        self.modules = modules
        for module in modules:
            importlib.import_module(module)
        for function in register:
            compatibility.resolve(function)()

    def do_discover(self):
        """Every id that is registered now, and the library's functions that may register more."""
        found = []
        for registry, specs in compatibility.registries():
            for name, spec in list(specs.items()):
                # Early versions of Gym keep it under the second name.
                entry_point = getattr(spec, "entry_point", getattr(spec, "_entry_point", None))
                entry_point = getattr(entry_point, "func", entry_point)  # of a functools.partial
                if not isinstance(entry_point, str):
                    entry_point = "{}:{}".format(
                        getattr(entry_point, "__module__", ""), getattr(entry_point, "__qualname__", "")
                    )
                found.append(
                    {
                        "id": str(name),
                        "registry": registry,
                        "entry_point": entry_point,
                        "max_episode_steps": getattr(spec, "max_episode_steps", None),
                        "reward_threshold": getattr(spec, "reward_threshold", None),
                        "nondeterministic": bool(getattr(spec, "nondeterministic", False)),
                    }
                )
        registers = compatibility.registering(self.modules)
        return {"environments": found, "registers": registers, "python": sys.version.split()[0]}

    def do_installed(self):
        """Every package with its version, and what it says of itself."""
        return {"frozen": installed.frozen(), "distributions": installed.distributions()}

    def do_make(self, recipe, num_envs, autoreset, spin, expert=None):
        """Make environments, with an expert beside each if one is named; the memory for their numbers follows."""
        self.spin = spin
        self.batch = EnvBatch(recipe, num_envs, autoreset, expert)
        return self.batch.description()

    def do_reset(self, seeds, options, mask):
        """Reset the environments that the mask names, or all, each with options of its own."""
        return self.batch.reset(seeds, options, mask)

    def do_step(self, actions=None):
        """Step every environment; ``actions`` are those that have no fixed size."""
        return self.batch.step(actions)

    def do_expert(self):
        """What the expert of each environment would do now."""
        return {"values": self.batch.expert_actions()}

    def do_render(self):
        """An image of each environment."""
        return {"frames": [environment.render() for environment in self.batch.environments]}

    def do_diagnostics(self):
        """What was out of order so far."""
        return self.batch.diagnostics()

    def do_has(self, name):
        """What a name is in each environment: "value", "method" or "nothing"."""
        return {"values": self.batch.has(name)}

    def do_set(self, name, values, rows):
        """Set an attribute of some environments, one value each."""
        self.batch.set(name, values, rows)
        return {"values": [None] * len(rows)}

    def do_call(self, name, args, kwargs, rows):
        """Call a method of some environments, or read an attribute."""
        return {"values": self.batch.call(name, args, kwargs, rows)}

    def do_close(self):
        """Close the environments."""
        if self.batch is not None:
            for environment in self.batch.environments:
                environment.env.close()


def supervise(lifeline, child, output):
    """Wait until the child or the client ends, leave no process behind, and tell the client how the child ended."""
    ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    kept = b""
    watched = [lifeline, output, ended]
    while not _has_ended(child):
        ready = select.select(watched, [], [])[0]
        if lifeline in ready:  # The client never writes to it: it is gone, or wants us gone.
            break
        if output in ready:
            chunk = os.read(output, 65536)
            kept = (kept + chunk)[-_OUTPUT_KEPT:]
            if not chunk:
                watched.remove(output)
        if ended in ready:
            os.read(ended, 4096)
    status = kill_descendants().get(child, 0)
    while output in watched and select.select([output], [], [], 0)[0]:
        chunk = os.read(output, 65536)
        kept = (kept + chunk)[-_OUTPUT_KEPT:]
        if not chunk:
            break
    try:
        lifeline.sendall(msgpack.packb({"status": status, "output": kept.decode("utf-8", "replace")}))
    except OSError:
        pass


def _has_ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_descendants(patience=5.0):
    """Kill every process that this one started, directly or not, and return how each ended.

    Orphans come to this process, because it is the subreaper: killing children until none is left reaches all.
    """
    statuses = {}
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(process) for process in file.read().split()]
        for process in children:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            process, status = os.waitpid(-1, 0)
            statuses[process] = status
        except ChildProcessError:
            break
    return statuses


def connect(path):
    """Connect to the client's socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return connection


def main(path):
    """Connect to the client, fork the child that serves, and watch over it."""
    control_process = getattr(ctypes.CDLL(None), "prctl", lambda *_: -1)  # only Linux has it.
    lifeline, control = connect(path), connect(path)
    output, child_output = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child:
        control.close()
        os.close(child_output)
        control_process(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        control_process(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # What runs below cannot trace or stop the supervisor.
        supervise(lifeline, child, output)
        return
    control_process(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)
    lifeline.close()
    os.close(output)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(child_output, 1)
    os.dup2(child_output, 2)
    os.close(child_output)

    Server(protocol.Channel(control)).serve()


if __name__ == "__main__":
    main(sys.argv[1])
