"""The mathematics as data: sizes, tables of activations, losses and optimizers, parameters. Knows no backend."""
