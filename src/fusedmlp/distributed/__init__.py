"""Training by several processes that MPI connects."""
