"""Experiments: weights -> source stage -> target stage -> evaluation, for seeds, splits, arms."""
