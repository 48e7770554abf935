"""Many heads, or many settings of a model, trained by one compiled program and compared on val."""
