"""Tables as packages bring them: the defaults of the command line against a pipeline of scikit-learn's."""
