"""Libraries of environments: their manifests, adding one, validating its environments, the catalogue."""
