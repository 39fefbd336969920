"""How a training scales over processes: measured on one and two, and what follows from that for more."""
