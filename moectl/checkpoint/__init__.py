"""Bytes on disk <-> named tensors: headers, index, reader, writer, Hub ids. Knows no model."""
