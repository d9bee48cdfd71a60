"""Shards of mosaicml-streaming in a local cache that holds a third of them: what fetches and unpacks them is the limit."""

from shards import run

if __name__ == "__main__":
    run(places=1, steps=512)
