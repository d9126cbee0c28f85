"""What is in a checkpoint and what it will cost, from its headers or its `config.json` alone. Imports no torch."""
