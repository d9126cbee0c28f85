"""ModelSpec -> a running decoder: norm, rope, attention, router, experts, schedules. Knows families only by their spec."""
