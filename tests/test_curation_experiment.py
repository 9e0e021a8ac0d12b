"""How often a policy that learned nothing is kept: the experiment's runs."""

from conftest import CARTPOLE
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.policy import train_policy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.env_registry.registry import make_vec
from ldm_hf.experiments import curation
from ldm_hf.experiments.curation import play


def test_a_random_policy_that_seems_to_improve_is_not_kept(monkeypatch):
    """The flags catch what the rule for curves lets pass by chance: here all of it."""
    monkeypatch.setattr(curation, "unfit", lambda curve, deterministic: None)
    assert play(CARTPOLE, 0, 1600, None) == (True, False)


def test_a_run_is_that_of_one_policy_throughout(monkeypatch):
    """Half of the actions of a policy that holds the pole are random: its first and last episodes are alike, and long."""
    recorder = Recorder(make_vec(CARTPOLE, 8, autoreset_mode="SameStep"), 2048, 500)
    candidate = Candidate("PPO", {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "learning_rate": 1e-3}, 8)
    policy = train_policy(
        Sb3VecEnv(recorder), candidate, timesteps=12_288, seed=0, progress=lambda _: None, recorder=recorder
    )
    curves = []
    monkeypatch.setattr(curation, "unfit", lambda curve, deterministic: curves.append(curve))
    assert play(CARTPOLE, 0, 8000, policy) == (True, True)
    (curve,) = curves
    assert curve.first.mean > 30 and abs(curve.last.mean / curve.first.mean - 1) < 0.5  # a random policy: 22


def test_shares_have_the_intervals_of_wilson():
    """2 of 40: 5 %, and (Wilson 1927) 1.4 to 16.5 %."""
    assert curation._share(2, 40) == "5.0% (1.4% to 16.5%)"
