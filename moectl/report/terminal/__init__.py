"""What `moectl route-stats` prints: a measurement drawn for a terminal."""
