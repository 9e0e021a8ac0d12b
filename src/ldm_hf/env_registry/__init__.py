"""Environments of many libraries behind one Gymnasium API: see ``ldm_hf.env_registry.registry``."""
