"""In and out of repositories: opening any checkpoint, converting and exporting, adapters, model cards."""
