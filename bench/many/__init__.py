"""Many networks at once: `fit_many` against trainings one after the other, jax.vmap and scikit-learn, in turns."""
