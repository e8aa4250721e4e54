"""The release pipeline: a checkpoint in, proven Core ML packages out; one module a stage."""
