"""The story: weights -> source stage -> target stage -> evaluation, for every seed, split and arm."""
