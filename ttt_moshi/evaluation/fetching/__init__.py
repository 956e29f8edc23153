"""Data sets of benchmarks, from the Hugging Face hub or an address, each file known by its digest."""
