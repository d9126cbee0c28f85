"""The arithmetic of counting: one event in, sums per sequence out. `moectl.routing.counters` keeps them."""
