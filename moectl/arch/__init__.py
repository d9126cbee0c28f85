"""What a family is: config.json and tensor names become a ModelSpec. One file per family. No torch."""
