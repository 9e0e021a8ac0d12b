"""OpenEnv serving a Gymnasium environment on loopback, and its own client stepping it; runs in an environment of its own.

``serve ID PORT NUM_ENVS`` is the server, a session an environment. ``drive ID PORT NUM_ENVS`` is the client: it reads
a line of JSON for each request, {"seconds": ...} or {"observations": steps, "file": where they are saved}, and answers each.
"""

import asyncio
import json
import sys
import time

import gymnasium
import numpy as np
from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

ID = sys.argv[2]
if ID.startswith("LdmBenchmark"):
    import ldm_benchmark  # noqa: F401 - registers it


class GymAction(Action):
    """An action, as JSON takes it."""

    value: int | list[float]


class GymObservation(Observation):
    """An observation, as JSON takes it: all of its numbers in one list, as OpenEnv's own environments send images."""

    value: list


class GymEnvironment(Environment):
    """One Gymnasium environment, reset in the step that ends an episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        self.env = gymnasium.make(ID, disable_env_checker=True)
        self.is_discrete = isinstance(self.env.action_space, gymnasium.spaces.Discrete)

    def reset(self, seed=None, episode_id=None, **kwargs):
        """Start an episode."""
        observation, _ = self.env.reset(seed=seed)
        return GymObservation(value=observation.ravel().tolist(), done=False, reward=0.0)

    def step(self, action, timeout_s=None, **kwargs):
        """Take an action."""
        value = action.value if self.is_discrete else np.array(action.value, self.env.action_space.dtype)
        observation, reward, terminated, truncated, _ = self.env.step(value)
        if terminated or truncated:
            observation, _ = self.env.reset()
        return GymObservation(value=observation.ravel().tolist(), done=terminated or truncated, reward=float(reward))

    @property
    def state(self):
        """Nothing is kept beside the environment."""
        return State()


class GymClient(EnvClient):
    """OpenEnv's client for it."""

    def _step_payload(self, action):
        return {"value": action.value}

    def _parse_result(self, payload):
        value = payload["observation"]["value"]
        observation = GymObservation(value=value, done=payload["done"], reward=payload["reward"])
        return StepResult(observation=observation, reward=payload["reward"], done=payload["done"])

    def _parse_state(self, payload):
        return State()


def serve(port, num_envs):
    """Serve until killed."""
    import uvicorn

    app = create_app(GymEnvironment, GymAction, GymObservation, env_name="benchmark", max_concurrent_envs=num_envs)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", ws_ping_interval=None)


async def drive(port, num_envs):
    """Step all sessions at the same time, as often as asked."""
    env = gymnasium.make(ID)
    space, shape, dtype = env.action_space, (num_envs, *env.observation_space.shape), env.observation_space.dtype
    env.close()
    clients = [GymClient(base_url=f"http://127.0.0.1:{port}") for _ in range(num_envs)]
    space.seed(0)
    batches = [[space.sample().tolist() for _ in clients] for _ in range(64)]
    for client in clients:
        await client.connect()
    await asyncio.gather(*(client.reset(seed=index) for index, client in enumerate(clients)))
    print(json.dumps({"ready": True}), flush=True)

    async def step(number):
        actions = [GymAction(value=value) for value in batches[number % len(batches)]]
        results = await asyncio.gather(*(client.step(action) for client, action in zip(clients, actions, strict=True)))
        return np.array([result.observation.value for result in results], dtype).reshape(shape)

    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        if "observations" in request:
            await asyncio.gather(*(client.reset(seed=index) for index, client in enumerate(clients)))
            seen = [await step(number) for number in range(request["observations"])]
            np.save(request["file"], np.stack(seen))
            print(json.dumps({"saved": len(seen)}), flush=True)
            continue
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < request["seconds"]:
            await step(count)
            count += 1
        print(json.dumps({"rate": count * num_envs / (time.perf_counter() - start)}), flush=True)
    for client in clients:
        await client.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[3]), int(sys.argv[4]))
    else:
        asyncio.run(drive(int(sys.argv[3]), int(sys.argv[4])))
