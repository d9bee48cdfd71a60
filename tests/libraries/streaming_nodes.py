"""Shards of mosaicml-streaming read at sixteen places by turns, of which the local cache holds twelve."""

from shards import run

if __name__ == "__main__":
    run(places=16, steps=256)
