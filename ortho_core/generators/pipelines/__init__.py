"""The kinds of diffusers pipelines that Ortho runs, each an adapter in a file of its own."""
