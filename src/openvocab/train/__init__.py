"""One step, one loop, checkpoints, several ranks, and the doctor."""
