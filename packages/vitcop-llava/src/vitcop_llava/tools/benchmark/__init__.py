"""What ``vitcop bench`` runs: models of known shapes, every method beside its oracle, and where the time goes."""
