"""Rows and images in, batches out. Modules are imported by name: `from unime.data.readers import read_mmeb_train`."""
