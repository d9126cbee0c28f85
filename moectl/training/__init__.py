"""The one training loop: data order, optimiser, schedules, balance of experts, checkpoints and exact resume."""
