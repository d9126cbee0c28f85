"""What the routers did: events -> counters -> metrics -> data frames, and the trace format."""
