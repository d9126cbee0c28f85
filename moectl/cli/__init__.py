"""The face: parse, build options, call the library, print. No tensor code, and nothing heavy at import."""
